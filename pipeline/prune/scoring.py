"""Scores of the units that are left, from statistics that are swept or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import IN_BLOCKS, SUBLAYERS, Space
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.measurements import Measured, Measurements, Scores, measurements_of
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics, GivenStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.events import Events
from pipeline.prune.compensation.linear_map import MAPS
from pipeline.prune.methods.method import BlockView, ScoringMethod
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep


@dataclass(frozen=True, kw_only=True)
class ScoredStep(ResolvedStep):
    """A step on units that a method scores.

    Attributes:
        method: scores them.
        sequential: each block is cut on what the pruned blocks before it give.
    """

    method: ScoringMethod
    sequential: bool = False

    def needs(self, compensated: bool = True) -> Needs:
        """What method, allocation and (if it is measured now) compensation read."""
        needs = self.method.needs(self)
        if self.rule == "cfsp":
            needs |= Needs(distance=True)
        readers = frozenset(SUBLAYERS[space].point for space in self.spaces if space in SUBLAYERS)
        if compensated and self.recipe.compensation == "least_squares":
            needs |= Needs(gram=readers)
        if compensated and self.recipe.compensation == "bias":
            needs |= Needs(squares=readers)
        return needs

    @property
    def statistics(self) -> Needs:
        """Of a sequential step without what its compensation reads: that is swept again, block after block."""
        return self.needs(compensated=not self.sequential)

    @property
    def reads_text(self) -> bool:
        return bool(self.needs()) or self.recipe.search is not None or self.recipe.compensation in MAPS

    @property
    def measures_importance(self) -> bool:
        return self.needs().distance

    def gram_bytes(self, geometry: Geometry) -> int | None:
        widths = {linear.point: linear.columns for linear in geometry.family.linears}
        points = self.statistics.gram
        return sum(4 * geometry.axis_size(widths[point], block) ** 2 for point in points for block in geometry.blocks)

    def measure(self, model: ShrinkingModel, windows: torch.Tensor, events: Events, given: GivenStatistics | None = None) -> Measurements:
        return measurements_of(*scored(model, windows, self, events, given))


def scored(
    model: ShrinkingModel, windows: torch.Tensor, step: ScoredStep, events: Events, given: GivenStatistics | None = None
) -> tuple[Scores, Measured]:
    """Scores over the units that are left, per space and original block, and ``step.statistics`` themselves.

    Args:
        given: statistics of this model on these windows, where they are known; without, it is swept.
    """
    needs, family, measured = step.statistics, model.geometry.family, {}
    if needs.forward:
        seen_forward = given.forward() if given else sweep(model.model, family, windows, needs, events)
        measured = {block: seen for block, seen in seen_forward if block in model.selection.blocks}
    else:
        measured = {block: BlockStatistics(windows.numel(), len(windows)) for block in model.selection.blocks}
    scores: Scores = {space: {} for space in step.spaces}
    if needs.gradients:
        seen_backward = (
            given.backward() if given else gradient_sweep(model.model, family, windows, needs.gradients, events, model.waiting_bytes)
        )
        for block, gradients in seen_backward:
            if block in measured:
                measured[block].gradients = gradients
                score_block(model, step, block, measured[block], scores)
                measured[block].gradients = None
                if "tokens" in gradients.experts:
                    measured[block].chosen = gradients.experts["tokens"].sum(dim=0)
            del gradients  # as large as the weights or larger
        return {space: dict(sorted(by_block.items())) for space, by_block in scores.items()}, measured
    for block, seen in measured.items():
        score_block(model, step, block, seen, scores)
    return scores, measured


def score_block(model: ShrinkingModel, step: ScoredStep, block: int, seen: BlockStatistics, scores: Scores) -> None:
    """Puts into ``scores`` those of one block, in each of its spaces.

    Raises:
        TrimlineError: they are not finite; names the tensor that is not, or the dtype.
    """
    left = {sublayer: model.selection.units(sublayer)[block] for sublayer in Sublayer}
    view = BlockView(seen, partial(model.weight, block), model.geometry, block, partial(model.bias, block), left)
    for space, by_block in scores.items():
        if space in IN_BLOCKS and not units_left(model, block, space):  # all went before
            by_block[block] = torch.zeros(0)
            continue
        score = step.method.score(view, space, step).float().cpu()
        model.demand_finite([score], f"The scores of block {block} by {step.recipe.method}")
        by_block[block] = score[list(units_left(model, block, space))]


def units_left(model: ShrinkingModel, block: int, space: Space) -> Sequence[int]:
    """Numbers of a space's units that are still there in a block."""
    if space is Space.RESIDUAL:
        return model.selection.residual or range(model.geometry.hidden)
    if space is Space.EXPERT:
        return model.selection.experts_of(block)
    return model.selection.units(SUBLAYERS[space])[block] if space in SUBLAYERS else (0,)
