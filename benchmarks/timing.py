"""Interleaved rounds: in each, every model is timed once, in random order, beside the dense model's second self.

Whatever else the machine does then falls on all models alike, and how far dense is from itself says what the
comparison is worth.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.recipe import LEAST_ROUNDS, BenchmarkSlice, Workload
from benchmarks.statistics import typical_ratio, within_band

DENSE = "dense"
CONTROL = "dense again"
FEWEST = 2  # rounds without which there is no ratio at all


@dataclass(frozen=True)
class Sample:
    """One request: seconds of its prompt pass and of every step after it; cores that others kept busy meanwhile."""

    prefill: float
    gaps: Sequence[float]
    others: float

    @property
    def seconds(self) -> float:
        return self.prefill + sum(self.gaps)


class Runner(Protocol):
    """Runs one request of a model."""

    def __call__(self, workload: Workload, seed: int) -> Sample: ...


@dataclass
class Samples:
    """What one model took on one workload, round by round."""

    rounds: list[Sample] = field(default_factory=list)

    def metrics(self) -> dict[str, list[float]]:
        """Seconds per round: of the ``prefill``, and of one ``decode`` step (the mean over the request's steps)."""
        found = {"prefill": [sample.prefill for sample in self.rounds]}
        if self.rounds and self.rounds[0].gaps:
            found["decode"] = [sum(sample.gaps) / len(sample.gaps) for sample in self.rounds]
        return found

    def gaps(self) -> list[float]:
        """Every gap between tokens, pooled."""
        return [gap for sample in self.rounds for gap in sample.gaps]


def time_workload(
    runners: Mapping[str, Runner],
    workload: Workload,
    recipe: BenchmarkSlice,
    advance: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Samples]:
    """Times every model on one workload.

    Args:
        runners: by name; ``dense`` and ``dense again`` among them.
        advance: told of each of the first ``recipe.rounds`` rounds.

    Returns:
        Samples by name, as many rounds for each: ``recipe.rounds``, more where they add up to less than
        ``minimum_seconds`` or while dense does not agree with itself; but none is begun after ``most_seconds``.
    """
    end = clock() + recipe.most_seconds
    chance = random.Random(f"{recipe.seed} {workload.name}")
    for _ in range(recipe.warm_up):
        _one_round(runners, workload, chance)
    samples = {name: Samples() for name in runners}
    while True:
        for name, sample in _one_round(runners, workload, chance).items():
            samples[name].rounds.append(sample)
        made = len(samples[DENSE].rounds)
        advance(int(made <= recipe.rounds))
        enough = made >= recipe.rounds and shortest(samples) >= recipe.minimum_seconds
        if (enough and agrees_with_itself(samples)) or (made >= FEWEST and clock() >= end):
            return samples


def shortest(samples: Mapping[str, Samples]) -> float:
    """Measured seconds of the model that has least of them."""
    return min(sum(sample.seconds for sample in of_model.rounds) for of_model in samples.values())


def agrees_with_itself(samples: Mapping[str, Samples]) -> bool:
    """Whether dense against dense again lies within the control's band on every metric.

    Fewer rounds than a control needs are never enough, and are not added to here: who asks for few gets few.
    """
    if len(samples[DENSE].rounds) < LEAST_ROUNDS:
        return True
    dense, again = samples[DENSE].metrics(), samples[CONTROL].metrics()
    return all(within_band(typical_ratio(dense[metric], again[metric])) for metric in dense)


def _one_round(runners: Mapping[str, Runner], workload: Workload, chance: random.Random) -> dict[str, Sample]:
    """Every model once, in random order, on the same prompt, which no other round has."""
    order = list(runners)
    chance.shuffle(order)
    seed = chance.getrandbits(31)
    return {name: runners[name](workload, seed) for name in order}
