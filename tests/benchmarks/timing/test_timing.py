from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.timing.timing import CONTROL, DENSE, Sample, Samples, agrees_with_itself, time_workloads

NAMES = (DENSE, "pruned", CONTROL)
WORKLOAD = Workload(prompt=8, output=3)


class Fake:
    """A model on a machine whose clock moves only when a model runs."""

    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self.machine, self.name, self.seconds = machine, name, seconds

    def open(self) -> None:
        self.machine.calls.append((self.name, "open", 0))

    def run(self, workload: Workload, seed: int) -> Sample:
        self.machine.calls.append((self.name, workload.name, seed))
        self.machine.now += self.seconds
        return Sample(self.seconds / 2, [self.seconds / 2 / workload.steps] * workload.steps, others=0.0)


class Machine:
    """Three models that take the time they are told to."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, str, int]] = []
        self.models = {name: Fake(self, name, seconds.get(name.replace(" ", "_"), 1.0)) for name in NAMES}

    def timed(self, *, advance: Callable[[int], None] = lambda count: None, **recipe: object) -> dict[str, Samples]:
        settings = {"workloads": (WORKLOAD,), "minimum_seconds": 0.0, "most_seconds": 10_000.0} | recipe
        found = time_workloads(self.models, BenchmarkSlice(**settings), advance, lambda: self.now)  # type: ignore[arg-type]
        return found[WORKLOAD.name]

    def rounds(self) -> list[list[tuple[str, str, int]]]:
        """Calls by threes: openings and rounds, warm-up included."""
        return [self.calls[i : i + 3] for i in range(0, len(self.calls), 3)]


def test_every_round_has_every_model_once_in_an_order_that_changes():
    machine = Machine()
    machine.timed()
    assert all(sorted(name for name, _, _ in one) == sorted(NAMES) for one in machine.rounds())
    assert len({tuple(name for name, _, _ in one) for one in machine.rounds()}) == 6


def test_one_prompt_per_round_and_never_the_same_again():
    machine = Machine()
    machine.timed()
    seeds = [{seed for _, _, seed in one} for one in machine.rounds() if one[0][1] != "open"]
    assert all(len(one) == 1 for one in seeds)
    assert len(set.union(*seeds)) == len(seeds)


def test_models_are_opened_anew_and_warmed_up_every_few_rounds():
    machine = Machine()
    found = machine.timed(rounds_per_opening=10, warm_up=2)
    kinds = "".join("o" if one[0][1] == "open" else "r" for one in machine.rounds())
    assert kinds == "o" + "r" * 12 + "o" + "r" * 12 + "o" + "r" * 7
    assert {len(samples.rounds) for samples in found.values()} == {25}


def test_workloads_take_turns_between_openings():
    machine, other = Machine(), Workload(prompt=3, output=2)
    machine.timed(workloads=(WORKLOAD, other))
    kinds = [one[0][1] for one in machine.rounds()]
    assert kinds[:13] == ["open"] + [WORKLOAD.name] * 6 + [other.name] * 6
    assert kinds.count(other.name) == 30


def test_rounds_are_added_until_the_least_time_is_measured():
    assert len(Machine(pruned=0.1).timed(minimum_seconds=4.0)["pruned"].rounds) == 40


def test_rounds_are_added_while_dense_disagrees_with_itself_up_to_the_budget():
    machine = Machine(dense_again=1.5)  # a round takes 3.5 s
    found = machine.timed(most_seconds=350.0)
    assert machine.now == 350.0
    assert len(found[DENSE].rounds) == 100 - 17  # an opening every five rounds, one round of warm-up after each


def test_the_budget_ends_a_run_that_is_too_slow_for_its_rounds():
    assert len(Machine(dense=100.0).timed(most_seconds=150.0)[DENSE].rounds) == 2


def test_few_rounds_are_not_added_to():
    assert len(Machine(dense_again=2.0).timed(rounds=3)[DENSE].rounds) == 3
    assert len(Machine().timed(rounds=1)[DENSE].rounds) == 2  # one alone has no ratio


def test_rounds_of_one_opening_are_added_to_until_there_is_another():
    machine = Machine()
    assert len(machine.timed(rounds_per_opening=30)[DENSE].rounds) == 31
    assert sum(what == "open" for _, what, _ in machine.calls) == 2 * 3


def test_progress_stops_at_the_rounds_that_were_announced():
    told: list[int] = []
    Machine(dense_again=1.5).timed(advance=told.append, most_seconds=200.0)
    assert sum(told) == 25


@pytest.mark.parametrize(("again", "agrees"), [(1.0, True), (1.015, True), (1.03, False), (0.97, False)])
def test_agreement_is_within_two_hundredths(again: float, agrees: bool):
    samples = {
        DENSE: Samples([Sample(1.0, [], 0.0)] * 25),
        CONTROL: Samples([Sample(again, [], 0.0)] * 25),
    }
    assert agrees_with_itself(samples, 5) is agrees


def test_agreement_is_asked_of_decode_too():
    samples = {
        DENSE: Samples([Sample(1.0, [1.0], 0.0)] * 25),
        CONTROL: Samples([Sample(1.0, [1.1], 0.0)] * 25),
    }
    assert not agrees_with_itself(samples, 5)


def test_metrics_are_the_prompt_pass_and_the_mean_step():
    samples = Samples([Sample(3.0, [1.0, 3.0], 0.0), Sample(4.0, [2.0, 2.0], 0.0)])
    assert samples.by_phase() == {"prefill": [3.0, 4.0], "decode": [2.0, 2.0]}
    assert samples.gaps() == [1.0, 3.0, 2.0, 2.0]
    assert Samples([Sample(3.0, [], 0.0)]).by_phase() == {"prefill": [3.0]}
