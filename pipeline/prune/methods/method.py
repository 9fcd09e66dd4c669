"""What a method is: a rule that scores units, a rule that prunes single weights, or a whole step of its own.

Every method has a ``name``, the ``spaces`` that recipes may give it a budget for, and ``options``: the model that its
part of the recipe (``options:``) is validated with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from pipeline.architecture.families import Linear, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Counts, Space
from pipeline.calibrate.measurements import Measurements, Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.routed import RoutedStatistics
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.common.events import Events
from pipeline.common.slices import Slice
from pipeline.plan.plan import Step
from pipeline.prune.model.masks import Pattern
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import Method, ResolvedStep

Options = TypeVar("Options", bound=Slice)


class NoOptions(Slice):
    """Of a method without options."""


def options_of(step: ResolvedStep, model: type[Options]) -> Options:
    """The step's options, as the method's own model that they were validated with."""
    assert isinstance(step.options, model)
    return step.options


@dataclass(frozen=True)
class BlockView:
    """What a scoring method sees of one block.

    Attributes:
        statistics: what the sweep collected.
        weight: module name inside the block to its weight, fp32, shape (rows, columns); read when asked for.
        geometry: sizes of the whole dense model.
        number: which block.
        bias: module name to its bias, fp32, shape (rows,); None where it has none.
        left: per sublayer the units that earlier steps left, ascending; all where it is not there.
    """

    statistics: BlockStatistics
    weight: Callable[[str], torch.Tensor]
    geometry: Geometry
    number: int
    bias: Callable[[str], torch.Tensor | None] = lambda _: None
    left: Mapping[Sublayer, tuple[int, ...]] = field(default_factory=dict)

    def reader(self, sublayer: Sublayer) -> InputStatistics:
        """Statistics of the inputs of the sublayer's reader."""
        return self.statistics.inputs[sublayer.point]

    @property
    def routed(self) -> RoutedStatistics:
        """What the block's experts gave, where ``Needs.routed`` was asked for."""
        assert self.statistics.routed is not None
        return self.statistics.routed

    def channels_left(self, sublayer: Sublayer) -> torch.Tensor:
        """Which inputs of the sublayer's reader earlier steps left, ascending."""
        width = self.geometry.unit_width(self.geometry.family.reader(sublayer).columns)
        units = self.left.get(sublayer, range(self.geometry.blocks[self.number].units(sublayer)))
        return (torch.tensor(list(units), dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()


@dataclass(frozen=True)
class LayerView:
    """What a weight method sees of one projection: the rows and columns that are left.

    Attributes:
        linear: which projection of the family.
        block: original number of its block.
        weight: fp32, shape (R, C), on the device that measures.
        statistics: of the whole block: tokens, sequences.
        inputs: statistics of its C inputs, as they are after the blocks before were pruned, where asked for.
        absolute, squares: Σ|g| and Σg² over sequences, g as it was before the step, shape (R, C), where asked for.
    """

    linear: Linear
    block: int
    weight: torch.Tensor
    statistics: BlockStatistics
    inputs: InputStatistics | None = None
    absolute: torch.Tensor | None = None
    squares: torch.Tensor | None = None


@runtime_checkable
class ScoringMethod(Method, Protocol):
    """Scores units; counting, cutting and updating are the same for all.

    Attributes:
        allocation: how a budget is spread over blocks unless the recipe says otherwise.
    """

    allocation: str

    def needs(self, step: ResolvedStep) -> Needs:
        """The statistics that ``score`` and the method's own allocation read."""

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Importance per unit of ``space`` in this block, shape (units,), fp32; for ``layer`` shape (1,).

        For ``residual`` shape (hidden,): what is added up over the blocks.
        """


@runtime_checkable
class CheckingMethod(Method, Protocol):
    """Knows of steps that its options and spaces alone do not show to be wrong."""

    def check(self, step: ResolvedStep) -> None:
        """Raises TrimlineError where it cannot do the step; nothing has been measured yet."""


@runtime_checkable
class PoolingMethod(ScoringMethod, Protocol):
    """Shares out a pooled budget by rules of its own."""

    def pooled_counts(self, geometry: Geometry, step: ResolvedStep, scores: Scores) -> tuple[Counts, dict[str, Any]]:
        """How many units of each space every block keeps, and the numbers behind it; see ``pooled_allocation``."""

    def is_even(self, step: ResolvedStep) -> bool:
        """Whether blocks that are alike stay alike."""


@runtime_checkable
class WeightMethod(Method, Protocol):
    """Prunes single weights, projection by projection, while a sweep moves on through pruned blocks."""

    def weight_needs(self, step: ResolvedStep) -> Needs:
        """The statistics that ``prune`` reads."""

    def prune(self, layer: LayerView, pattern: Pattern, remove: float, step: ResolvedStep) -> torch.Tensor:
        """The projection's new weight, shape (R, C), fp32, with exact zeros where it was pruned."""


@runtime_checkable
class StepMethod(Method, Protocol):
    """Does a whole step itself; where it scores units too, only that of single weights."""

    def run(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Iterator[tuple[Step, Scores]]:
        """Shrinks ``model`` and says what was decided, an entry per shot, before the next one is begun."""


@runtime_checkable
class MeasuringMethod(StepMethod, Protocol):
    """Does a whole step itself, and can say beforehand what its first shot measures."""

    def measured(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Measurements:
        """The same for every budget."""

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        """As ``StepMethod.run``; ``measurements`` is what ``measured`` gave for this model, and stands for measuring the first shot."""
