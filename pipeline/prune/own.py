"""Steps that a method does itself, from measuring to updating."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.calibrate.measurements import Measurements, Scores
from pipeline.calibrate.statistics import GivenStatistics
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.methods.method import MeasuringMethod, StepMethod
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep


def finite(model: ShrinkingModel, step: ResolvedStep, scores: Scores) -> Scores:
    """The scores that a method gives.

    Raises:
        TrimlineError: they are not finite; names the tensor that is not, or the dtype.
    """
    for by_block in scores.values():
        for block, score in by_block.items():
            model.demand_finite([score], f"The scores of block {block} by {step.recipe.method}")
    return scores


@dataclass(frozen=True, kw_only=True)
class OwnStep(ResolvedStep):
    """A step that its method does.

    Attributes:
        method: does it.
    """

    method: StepMethod

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        for done, scores in self.method.run(model, windows, self, events):
            yield done, finite(model, self, scores)


@dataclass(frozen=True, kw_only=True)
class MeasuringStep(ResolvedStep):
    """A step that its method does, with a first shot that can be measured beforehand.

    Attributes:
        method: does it.
    """

    method: MeasuringMethod

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        for done, scores in self.method.run(model, windows, self, events, measurements):
            yield done, finite(model, self, scores)

    def measure(self, model: ShrinkingModel, windows: torch.Tensor, events: Events, given: GivenStatistics | None = None) -> Measurements:
        found = self.method.measured(model, windows, self, events)
        model.demand_finite(found.tensors.values(), f"The measurements of {self.recipe.method}")
        return found

    def gram_bytes(self, geometry: Geometry) -> int:
        return 0
