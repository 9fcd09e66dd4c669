from __future__ import annotations

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.timing import CONTROL, DENSE, Sample, Samples, agrees_with_itself, time_workload

NAMES = (DENSE, "pruned", CONTROL)
WORKLOAD = Workload(prompt=8, output=3)


class Machine:
    """A clock and models that take the time they are told to."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []
        self.runners = {name: self._runner(name, seconds.get(name.replace(" ", "_"), 1.0)) for name in NAMES}

    def clock(self) -> float:
        return self.now

    def _runner(self, name: str, seconds: float):
        def run(workload: Workload, seed: int) -> Sample:
            self.calls.append((name, seed))
            self.now += seconds
            return Sample(seconds / 2, [seconds / 2 / workload.steps] * workload.steps, others=0.0)

        return run


def timed(machine: Machine, **recipe: object) -> dict[str, Samples]:
    settings = {"workloads": (WORKLOAD,), "minimum_seconds": 0.0, "most_seconds": 1000.0} | recipe
    return time_workload(machine.runners, WORKLOAD, BenchmarkSlice(**settings), clock=machine.clock)  # type: ignore[arg-type]


def rounds(machine: Machine) -> list[list[tuple[str, int]]]:
    return [machine.calls[i : i + 3] for i in range(0, len(machine.calls), 3)]


def test_every_round_runs_every_model_once_in_an_order_that_changes():
    machine = Machine()
    timed(machine)
    assert all(sorted(name for name, _ in one) == sorted(NAMES) for one in rounds(machine))
    assert len({tuple(name for name, _ in one) for one in rounds(machine)}) == 6


def test_one_prompt_per_round_and_never_the_same_again():
    machine = Machine()
    timed(machine)
    seeds = [{seed for _, seed in one} for one in rounds(machine)]
    assert all(len(one) == 1 for one in seeds)
    assert len(set.union(*seeds)) == len(seeds)


def test_warm_up_is_run_and_not_kept():
    machine = Machine()
    found = timed(machine, warm_up=4)
    assert len(rounds(machine)) == 25 + 4
    assert {len(samples.rounds) for samples in found.values()} == {25}


def test_rounds_are_added_until_the_least_time_is_measured():
    assert len(timed(Machine(pruned=0.1), minimum_seconds=4.0)["pruned"].rounds) == 40


def test_rounds_are_added_while_dense_disagrees_with_itself_up_to_the_budget():
    machine = Machine(dense_again=1.5)  # a round takes 3.5 s
    found = timed(machine, most_seconds=350.0)
    assert len(found[DENSE].rounds) == 100 - 2
    assert machine.now == 350.0


def test_the_budget_ends_a_run_that_is_too_slow_for_its_rounds():
    assert len(timed(Machine(dense=100.0), most_seconds=150.0)[DENSE].rounds) == 2


def test_few_rounds_are_not_added_to():
    assert len(timed(Machine(dense_again=2.0), rounds=3)[DENSE].rounds) == 3


@pytest.mark.parametrize(("again", "agrees"), [(1.0, True), (1.015, True), (1.03, False), (0.97, False)])
def test_agreement_is_within_two_hundredths(again: float, agrees: bool):
    samples = {
        DENSE: Samples([Sample(1.0, [], 0.0)] * 25),
        CONTROL: Samples([Sample(again, [], 0.0)] * 25),
    }
    assert agrees_with_itself(samples) is agrees


def test_agreement_is_asked_of_decode_too():
    samples = {
        DENSE: Samples([Sample(1.0, [1.0], 0.0)] * 25),
        CONTROL: Samples([Sample(1.0, [1.1], 0.0)] * 25),
    }
    assert not agrees_with_itself(samples)


def test_metrics_are_the_prompt_pass_and_the_mean_step():
    samples = Samples([Sample(3.0, [1.0, 3.0], 0.0), Sample(4.0, [2.0, 2.0], 0.0)])
    assert samples.metrics() == {"prefill": [3.0, 4.0], "decode": [2.0, 2.0]}
    assert samples.gaps() == [1.0, 3.0, 2.0, 2.0]
    assert Samples([Sample(3.0, [], 0.0)]).metrics() == {"prefill": [3.0]}


def test_progress_stops_at_the_rounds_that_were_announced():
    machine, told = Machine(dense_again=1.5), []
    recipe = BenchmarkSlice(workloads=(WORKLOAD,), minimum_seconds=0.0, most_seconds=200.0)
    time_workload(machine.runners, WORKLOAD, recipe, told.append, machine.clock)
    assert sum(told) == 25
