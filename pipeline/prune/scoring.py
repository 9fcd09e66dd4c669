"""Scores of the units that are left, from statistics that are swept or given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.gradients import BlockGradients, gradient_sweep
from pipeline.calibrate.measurements import Measured, Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.prune.methods import ScoringMethod, method_named
from pipeline.prune.methods.method import BlockView
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneStep
from pipeline.prune.steps import rule_of


class GivenStatistics(Protocol):
    """What the sweeps would yield, in their order."""

    def forward(self) -> Iterator[tuple[int, BlockStatistics]]:
        """As ``sweep``."""

    def backward(self) -> Iterator[tuple[int, BlockGradients]]:
        """As ``gradient_sweep``."""


def measure(
    model: ShrinkingModel,
    windows: torch.Tensor,
    step: PruneStep,
    events: Events,
    compensated: bool = True,
    given: GivenStatistics | None = None,
) -> tuple[Scores, Measured]:
    """Scores over the units that are left, per space and original block, and the statistics themselves.

    Args:
        compensated: whether the statistics are to hold what the step's compensation reads.
        given: statistics of this model on these windows, where they are known; without, it is swept.
    """
    method, needs = method_named(step.method), needs_of(step, compensated)
    assert isinstance(method, ScoringMethod)
    family, measured = model.geometry.family, {}
    if needs.forward or not needs.gradients:
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
                _score(model, method, step, block, measured[block], scores)
                measured[block].gradients = None
            del gradients  # as large as the weights or larger
        return {space: dict(sorted(by_block.items())) for space, by_block in scores.items()}, measured
    for block, seen in measured.items():
        _score(model, method, step, block, seen, scores)
    return scores, measured


def _score(model: ShrinkingModel, method: ScoringMethod, step: PruneStep, block: int, seen: BlockStatistics, scores: Scores) -> None:
    left = {sublayer: model.selection.units(sublayer)[block] for sublayer in Sublayer}
    view = BlockView(seen, partial(model.weight, block), model.geometry, block, partial(model.bias, block), left)
    for space, by_block in scores.items():
        if space in SUBLAYERS and not left[SUBLAYERS[space]]:  # the whole sublayer went before
            by_block[block] = torch.zeros(0)
            continue
        score = method.score(view, space, step).float().cpu()
        _demand_finite(score, block, model.model)
        by_block[block] = score[list(_units_left(model, space, left))]


def _units_left(model: ShrinkingModel, space: Space, left: Mapping[Sublayer, tuple[int, ...]]) -> Sequence[int]:
    """Numbers of a space's units that are still there in a block."""
    if space is Space.RESIDUAL:
        return model.selection.residual or range(model.geometry.hidden)
    return left[SUBLAYERS[space]] if space in SUBLAYERS else (0,)


def _demand_finite(score: torch.Tensor, block: int, model: torch.nn.Module) -> None:
    if not torch.isfinite(score).all():
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise TrimlineError(
            f"The scores of block {block} are not finite: its activations overflow in {dtype}.", "Measure in float32: --dtype float32."
        )


def needs_of(step: PruneStep, compensated: bool = True) -> Needs:
    """What the step's method, allocation and (if it is measured now) compensation read."""
    method = method_named(step.method)
    assert isinstance(method, ScoringMethod)
    needs = method.needs(step)
    if rule_of(step) == "cfsp":
        needs |= Needs(distance=True)
    if compensated and step.compensation == "least_squares":
        needs |= Needs(gram=frozenset(SUBLAYERS[space].point for space in step.spaces if space in SUBLAYERS))
    if compensated and step.compensation == "bias":
        needs |= Needs(squares=frozenset(SUBLAYERS[space].point for space in step.spaces if space in SUBLAYERS))
    return needs
