"""Whether a target was met, on given numbers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.document import Results
from benchmarks.results.target import Judgement, judge, series, timed_workload
from pipeline.common.errors import TrimlineError
from pipeline.prune.recipe import Target
from tests.benchmarks.results import sample_results

RECIPE = BenchmarkSlice(workloads=(Workload(prompt=8), Workload(prompt=4, output=3)))


def results(speed_up: float, spread: float = 0.0, again: float = 1.0, rounds: int = 30) -> Results:
    """A benchmark whose pruned model is so many times as fast, in every round within ± spread."""

    def samples(base: float, noisy: bool) -> dict[str, Any]:
        times = [base * (1 + (spread * ((number * 7) % 11 - 5) / 5 if noisy else 0)) for number in range(rounds)]
        return {"prefill": times, "gaps": [[time / 10, time / 10] for time in times]}

    by_model = {"dense": samples(1.0, False), "dense again": samples(1.0 / again, False), "pruned": samples(1.0 / speed_up, True)}
    prefill_only = {name: found | {"gaps": [[] for _ in found["gaps"]]} for name, found in by_model.items()}
    return sample_results.results(RECIPE, {"8/1": prefill_only, "4/3": by_model})


@pytest.mark.parametrize(
    ("measured", "outcome", "words"),
    [
        ({"speed_up": 1.40}, "met", "met"),
        ({"speed_up": 1.37}, "met", "met"),
        ({"speed_up": 1.43}, "met", "met"),
        ({"speed_up": 1.30}, "missed", "7.1% slower"),
        ({"speed_up": 1.50}, "missed", "7.1% faster"),
        ({"speed_up": 1.40, "spread": 0.2}, "not resolved", "out of the band"),
        ({"speed_up": 1.40, "again": 1.05}, "not resolved", "did not agree with itself"),
        ({"speed_up": 1.40, "rounds": 20}, "not resolved", "over 25 rounds"),
    ],
)
def test_a_speed_up_is_met_when_its_whole_interval_is_within_the_band(measured, outcome, words) -> None:
    (found,) = judge(results(**measured), Target(speedup=1.4), "pruned")
    assert found.outcome == outcome
    assert words in found.reason


@pytest.mark.parametrize(
    ("asked", "outcome", "words"), [(71.0, "met", "met"), (60.0, "missed", "19.0% slower"), (90.0, "missed", "20.6% faster")]
)
def test_a_latency_is_judged_by_the_median_of_the_pruned_model(asked, outcome, words) -> None:
    (found,) = judge(results(1.4), Target(latency_ms=asked), "pruned")  # 100 ms / 1.4
    assert (found.outcome, found.value) == (outcome, pytest.approx(1000 / 14))
    assert words in found.reason


def test_both_are_judged_and_counts_are_not() -> None:
    found = judge(results(1.4), Target(speedup=1.4, latency_ms=50.0, parameters=0.5), "pruned")
    assert [(one.key, one.outcome) for one in found] == [("speedup", "met"), ("latency_ms", "missed")]
    assert judge(results(1.4), Target(parameters=0.5), "pruned") == ()


def test_only_a_measurement_that_counts_is_reason_to_try_again() -> None:
    def outside(value: float, holds: bool, spread: float = 0.01) -> bool:
        return Judgement("speedup", "decode", 1.4, value, value - spread, value + spread, holds).is_outside

    assert [outside(1.3, True), outside(1.3, False), outside(1.38, True), outside(1.5, True)] == [True, False, False, True]
    assert [outside(1.3, True, spread=0.09), outside(1.3, True, spread=0.11)] == [True, False]  # which may be 1.4 all the same


def test_phases_and_whole_requests_are_told_apart() -> None:
    measured = results(2.0)
    assert series(measured, "decode", "pruned")[0] == pytest.approx(0.05)
    assert series(measured, "prefill", "pruned")[0] == pytest.approx(0.5)
    assert series(measured, "4/3", "pruned")[0] == pytest.approx(0.6)
    assert timed_workload(RECIPE, "prefill").name == "8/1"
    assert timed_workload(RECIPE, "decode").name == "4/3"
    with pytest.raises(TrimlineError, match="does not time"):
        timed_workload(RECIPE, "512/1")
    with pytest.raises(TrimlineError, match="does not time"):
        timed_workload(BenchmarkSlice(workloads=(Workload(prompt=8),)), "decode")
