"""Interleaved rounds: in each, every model is timed once, in random order, beside the dense model's second self.

Whatever else the machine does then falls on all models alike, and how far dense is from itself says what the
comparison is worth.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.formulas.statistics import control_holds, paired_ratio
from benchmarks.recipe import LEAST_ROUNDS, BenchmarkSlice, Phase, Workload
from pipeline.common.errors import TrimlineError

DENSE = "dense"
CONTROL = "dense again"
FEWEST = 2  # rounds without which there is no ratio at all


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        prefill: seconds of its prompt pass.
        gaps: seconds of every step after it.
        others: cores that others kept busy meanwhile.
        compiled: graphs that the runtime compiled meanwhile.
        joules: of ``prefill`` and of all steps together (``decode``), by the counter that told; none where none did.
        parts: of ``prefill`` and of every step (``decode``), seconds by name; none where a runtime does not tell them apart.
    """

    prefill: float
    gaps: Sequence[float]
    others: float
    compiled: int = 0
    joules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.prefill + sum(self.gaps)


class Model(Protocol):
    """A model that can be opened and run."""

    def open(self) -> None:
        """Loads it, in new memory if it was open already."""

    def run(self, workload: Workload, seed: int) -> Sample:
        """One request."""


@dataclass
class Samples:
    """What one model took on one workload, round by round."""

    rounds: list[Sample] = field(default_factory=list)

    def by_phase(self) -> dict[Phase, list[float]]:
        """Seconds per round: of the ``prefill``, and of one ``decode`` step (the mean over the request's steps)."""
        found: dict[Phase, list[float]] = {"prefill": [sample.prefill for sample in self.rounds]}
        if self.rounds and self.rounds[0].gaps:
            found["decode"] = [sum(sample.gaps) / len(sample.gaps) for sample in self.rounds]
        return found

    def gaps(self) -> list[float]:
        """Every gap between tokens, pooled."""
        return [gap for sample in self.rounds for gap in sample.gaps]

    def joules(self, phase: str) -> dict[str, list[float]]:
        """Per counter the joules of every round."""
        of_rounds = [sample.joules.get(phase, {}) for sample in self.rounds]
        return {counter: [found[counter] for found in of_rounds] for counter in (of_rounds[0] if of_rounds else ())}

    def parts(self, phase: str) -> dict[str, list[float]]:
        """Per part the seconds of every round: of the prompt pass, or the mean over the request's steps."""
        of_rounds = [sample.parts.get(phase, {}) for sample in self.rounds]
        return {name: [statistics.fmean(found[name]) for found in of_rounds] for name in (of_rounds[0] if of_rounds else ())}


Timed = dict[str, dict[str, Samples]]  # workload name, then model name


def time_workloads(
    models: Mapping[str, Model],
    recipe: BenchmarkSlice,
    advance: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float] = time.monotonic,
) -> Timed:
    """Times every model on every workload.

    All models are opened anew, in random order, every ``rounds_per_opening`` rounds: two processes of the same model
    differ by some per cent for as long as they live, depending on which pages of memory they were given.

    Args:
        models: by name; ``dense`` and ``dense again`` among them.
        advance: told of each of a workload's first ``recipe.rounds`` rounds.

    Returns:
        Samples by workload and model, as many rounds for each model: ``recipe.rounds``, more where they add up to less
        than ``minimum_seconds`` or while dense does not agree with itself; none but the first two are begun after
        ``most_seconds``.

    Raises:
        TrimlineError: a runtime compiled a graph after the warm-up.
    """
    chance, end = random.Random(recipe.seed), clock() + recipe.most_seconds
    timed: Timed = {workload.name: {name: Samples() for name in models} for workload in recipe.workloads}
    active = recipe.workloads
    while active:
        for name in _shuffled(models, chance):
            models[name].open()
        for workload in active:
            _sitting(models, workload, timed[workload.name], recipe, chance, lambda: clock() >= end, advance)
        active = tuple(workload for workload in active if not _finished(timed[workload.name], recipe, clock() >= end))
    return timed


def _sitting(
    models: Mapping[str, Model],
    workload: Workload,
    samples: Mapping[str, Samples],
    recipe: BenchmarkSlice,
    chance: random.Random,
    late: Callable[[], bool],
    advance: Callable[[int], None],
) -> None:
    """The rounds of one workload between two openings."""
    for _ in range(recipe.warm_up):
        _one_round(models, workload, chance)
    for _ in range(recipe.rounds_per_opening):
        made = len(samples[DENSE].rounds)
        if (late() and made >= FEWEST) or _finished(samples, recipe, late=False):
            return
        for name, sample in _one_round(models, workload, chance).items():
            _demand_compiled(name, workload, sample)
            samples[name].rounds.append(sample)
        advance(int(made < recipe.rounds))


def _demand_compiled(name: str, workload: Workload, sample: Sample) -> None:
    """Compiling belongs to the cold start: a sample that holds some is none."""
    if sample.compiled:
        raise TrimlineError(f"{name} compiled {sample.compiled} graphs while {workload.name} was being timed.",
                            "Raise benchmark.warm_up, or measure another runtime.")  # fmt: skip


def _finished(samples: Mapping[str, Samples], recipe: BenchmarkSlice, late: bool) -> bool:
    made = len(samples[DENSE].rounds)
    enough = made >= max(FEWEST, recipe.rounds) and shortest(samples) >= recipe.minimum_seconds
    return (enough and agrees_with_itself(samples, recipe.rounds_per_opening)) or (late and made >= FEWEST)


def shortest(samples: Mapping[str, Samples]) -> float:
    """Measured seconds of the model that has least of them."""
    return min(sum(sample.seconds for sample in of_model.rounds) for of_model in samples.values())


def agrees_with_itself(samples: Mapping[str, Samples], each: int) -> bool:
    """Whether dense against dense again, opened every so many rounds, holds as a control in every phase.

    Fewer rounds than a control needs are never enough, and are not added to here: who asks for few gets few.
    """
    if len(samples[DENSE].rounds) < LEAST_ROUNDS:
        return True
    dense, again = samples[DENSE].by_phase(), samples[CONTROL].by_phase()
    return all(control_holds(paired_ratio(dense[phase], again[phase], each=each)) for phase in dense)


def _one_round(models: Mapping[str, Model], workload: Workload, chance: random.Random) -> dict[str, Sample]:
    """Every model once, in random order, on the same prompt, which no other round has."""
    seed = chance.getrandbits(31)
    return {name: models[name].run(workload, seed) for name in _shuffled(models, chance)}


def _shuffled(models: Mapping[str, Model], chance: random.Random) -> list[str]:
    return chance.sample(list(models), len(models))
