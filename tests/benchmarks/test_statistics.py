from __future__ import annotations

import numpy as np
import pytest

from benchmarks import statistics
from benchmarks.statistics import Ratio, Verdict, control_holds, paired_ratio, summarise, typical_ratio, verdict


def ratio(value: float, low: float, high: float, rounds: int = 25) -> Ratio:
    return Ratio(value, low, high, rounds, value, low, high)


def test_summary_of_known_values():
    found = summarise([float(n) for n in range(1, 102)])  # 1 … 101
    assert (found.n, found.mean, found.minimum, found.maximum) == (101, 51.0, 1.0, 101.0)
    assert (found.p50, found.p75, found.p90, found.p95, found.p99) == (51.0, 76.0, 91.0, 96.0, 100.0)
    assert found.deviation == pytest.approx(np.sqrt(101 * 102 / 12))


@pytest.mark.parametrize(("count", "present"), [(99, False), (100, True)])
def test_no_p99_below_a_hundred_samples(count: int, present: bool):
    assert (summarise([1.0] * count).p99 is not None) is present


def test_one_sample_has_no_deviation_and_none_is_refused():
    assert summarise([2.0]).deviation is None
    with pytest.raises(ValueError, match="nothing"):
        summarise([])


def test_ratio_is_paired_and_says_which_way():
    found = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.value, found.of_medians) == (2.0, 2.0)
    assert (found.low, found.high) == (2.0, 2.0)


def test_a_drift_that_hits_both_halves_of_a_round_leaves_the_ratio():
    pace = np.linspace(1, 5, 31)
    found = paired_ratio((1.3 * pace).tolist(), pace.tolist())
    assert found.value == pytest.approx(1.3)
    assert found.high - found.low < 1e-12


def test_the_interval_is_the_binomial_one():
    """For 25 pairs the exact 95 % interval of a median runs from the 8th to the 18th value."""
    quotients = np.arange(1.0, 26.0)
    found = paired_ratio(quotients.tolist(), [1.0] * 25)
    assert (found.value, found.low, found.high) == (13.0, 8.0, 18.0)


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0]), ([1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_makes_no_pairs_is_refused(first: list[float], second: list[float]):
    with pytest.raises(ValueError):  # noqa: PT011 - three sentences
        paired_ratio(first, second)


def test_both_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch):
    """25 rounds of a machine whose pace wanders, 300 times: about 95 of 100 intervals must hold the true 1.25."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    chance = np.random.default_rng(7)
    exact = resampled = 0
    for _ in range(300):
        pace = np.exp(0.2 * chance.standard_normal(25))
        dense, pruned = (scale * pace * np.exp(0.1 * chance.standard_normal(25)) for scale in (1.25, 1.0))
        found = paired_ratio(dense.tolist(), pruned.tolist())
        exact += found.low <= 1.25 <= found.high
        resampled += found.of_medians_low <= 1.25 <= found.of_medians_high
    assert 0.92 <= exact / 300 <= 0.995
    assert 0.90 <= resampled / 300 <= 0.995


def test_typical_ratio_is_the_median_of_quotients():
    assert typical_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


@pytest.mark.parametrize(
    ("value", "rounds", "holds"), [(1.02, 25, True), (0.98, 25, True), (1.021, 25, False), (0.979, 25, False), (1.0, 24, False)]
)
def test_control_needs_both_nearness_and_rounds(value: float, rounds: int, holds: bool):
    assert control_holds(ratio(value, value, value, rounds)) is holds


@pytest.mark.parametrize(
    ("speed_up", "control", "expected"),
    [
        (ratio(1.3, 1.2, 1.4), ratio(1.0, 0.9, 1.1), Verdict.FASTER),
        (ratio(0.8, 0.7, 0.9), ratio(1.0, 0.9, 1.1), Verdict.SLOWER),
        (ratio(1.1, 0.99, 1.2), ratio(1.0, 0.9, 1.1), Verdict.SAME),
        (ratio(1.3, 1.2, 1.4), ratio(1.05, 1.0, 1.1), Verdict.UNRESOLVED),
        (ratio(1.3, 1.2, 1.4, 10), ratio(1.0, 1.0, 1.0, 25), Verdict.UNRESOLVED),
    ],
)
def test_verdicts(speed_up: Ratio, control: Ratio, expected: Verdict):
    assert verdict(speed_up, control) is expected


def test_a_bar_is_reached_when_the_interval_reaches_it():
    assert ratio(1.2, 1.1, 1.3).reaches(1.3)
    assert not ratio(1.2, 1.1, 1.3).reaches(1.31)
