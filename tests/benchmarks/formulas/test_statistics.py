from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from benchmarks.formulas.statistics import (
    Ratio,
    Verdict,
    by_opening,
    control_holds,
    paired_ratio,
    pooled_ratio,
    summarise,
    typical,
    verdict,
)
from benchmarks.results.cells import rounds_of


def ratio(value: float, low: float, high: float, rounds: int = 25, openings: int = 5) -> Ratio:
    return Ratio(value, low, high, rounds, value, low, high, openings)


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
    assert [found.value, found.of_medians, found.low, found.high] == pytest.approx([2.0] * 4)
    assert (found.rounds, found.openings) == (3, 3)


def test_a_drift_that_hits_both_halves_of_a_round_leaves_the_ratio():
    pace = np.linspace(1, 5, 31)
    found = paired_ratio((1.3 * pace).tolist(), pace.tolist())
    assert found.value == pytest.approx(1.3)
    assert found.high - found.low < 1e-12


def test_the_interval_is_students_over_openings():
    """Three openings, the last one short, each with a disturbed round that its median does not see."""
    first, second = [1.2, 1.2, 9.0, 1.3, 1.3, 0.1, 1.25], [1.0] * 7
    found = paired_ratio(first, second, each=3)
    logs = np.log([1.2, 1.3, 1.25])
    known = ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert (found.rounds, found.openings) == (7, 3)
    assert [found.value, found.low, found.high] == pytest.approx(np.exp([logs.mean(), known.low, known.high]))


def test_of_medians_goes_by_opening_too():
    first, second = [1.0, 2.0, 9.0, 3.0, 3.0, 3.0], [1.0, 1.0, 4.0, 2.0, 1.0, 9.0]
    found = paired_ratio(first, second, each=3)  # medians 2 over 1, and 3 over 2
    assert found.of_medians == pytest.approx(np.sqrt(2 * 1.5))
    assert found.of_medians_low < 1.5 < 2 < found.of_medians_high


def test_one_opening_has_its_extremes_and_never_counts():
    found = paired_ratio([1.0, 1.01, 1.02] * 10, [1.0] * 30, each=30)
    assert (found.value, found.low, found.high, found.openings) == (pytest.approx(1.01), 1.0, 1.02, 1)
    assert not control_holds(found)
    assert verdict(found, ratio(1.0, 0.99, 1.01)) is Verdict.UNRESOLVED


def test_openings_of_several_runs_are_pooled():
    runs = [[[1.1, 1.2, 1.3], [1.4]], [[1.0, 1.0, 1.3]]]
    pooled = [opening for run in runs for opening in run]
    found = pooled_ratio(pooled, [[1.0] * len(opening) for opening in pooled])
    assert (found.rounds, found.openings) == (7, 3)
    assert found.value == pytest.approx(np.exp(np.log([1.2, 1.4, 1.0]).mean()))
    with pytest.raises(ValueError, match="no pairs"):
        pooled_ratio(pooled, pooled[:2])


def test_one_model_has_the_interval_of_its_openings():
    found = typical(by_opening([2.0, 8.0, 1.0, 4.0, 4.0], 3))
    known = ttest_1samp(np.log([2.0, 4.0]), 0.0).confidence_interval(0.95)
    assert [found.value, found.low, found.high] == pytest.approx([np.sqrt(8.0), np.exp(known.low), np.exp(known.high)])


def test_a_ratio_of_before_openings_were_counted_is_read():
    old = {"value": 1.2, "low": 1.1, "high": 1.3, "rounds": 25, "of_medians": 1.2, "of_medians_low": 1.1, "of_medians_high": 1.3}
    assert Ratio(**old).reaches(1.25)
    assert (rounds_of(Ratio(**old)), rounds_of(ratio(1.2, 1.1, 1.3))) == ("25", "25 of 5 openings")


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0]), ([1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_makes_no_pairs_is_refused(first: list[float], second: list[float]):
    with pytest.raises(ValueError):  # noqa: PT011 - three sentences
        paired_ratio(first, second)


@pytest.mark.parametrize(("openings", "of_opening", "of_round"), [(5, 0.02, 0.02), (5, 0.0, 0.05), (8, 0.03, 0.01), (20, 0.02, 0.02)])
def test_intervals_cover_the_truth_as_often_as_they_say(openings: int, of_opening: float, of_round: float):
    """1,000 runs of a machine whose pace wanders, five rounds to an opening, which makes each model faster or slower."""
    chance, covered, of_rounds = np.random.default_rng(7), np.zeros(2), 0
    for _ in range(1000):
        pace = 0.2 * chance.standard_normal((openings, 1)) + 0.1 * chance.standard_normal((openings, 5))
        dense, pruned = (
            scale * np.exp(pace + of_opening * chance.standard_normal((openings, 1)) + of_round * chance.standard_normal((openings, 5)))
            for scale in (1.25, 1.0)
        )
        found = paired_ratio(dense.ravel().tolist(), pruned.ravel().tolist(), each=5)
        covered += (found.low <= 1.25 <= found.high, found.of_medians_low <= 1.25 <= found.of_medians_high)
        of_rounds += _order_statistics_hold((dense / pruned).ravel(), 1.25)
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)
    assert (of_rounds / 1000 < 0.85) is (of_opening > 0)  # the exact interval of rounds that are taken as independent


def _order_statistics_hold(quotients: np.ndarray, truth: float) -> bool:
    rank = int(binom.ppf(0.025, len(quotients), 0.5))
    ordered = np.sort(quotients)
    return bool(ordered[rank - 1] <= truth <= ordered[-rank])


@pytest.mark.parametrize(
    ("value", "rounds", "openings", "holds"),
    [(1.02, 25, 5, True), (0.98, 25, 2, True), (1.021, 25, 5, False), (0.979, 25, 5, False), (1.0, 24, 5, False), (1.0, 25, 1, False)],
)
def test_control_needs_nearness_rounds_and_openings(value: float, rounds: int, openings: int, holds: bool):
    assert control_holds(ratio(value, value, value, rounds, openings)) is holds


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
