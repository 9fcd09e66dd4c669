"""LLM Surgeon on single weights: one threshold for all projections, then an update that knows how the weights correlate.

A shot measures all blocks before it changes any. The factors of all projections are several times as large as the model in
fp32, so that only those of one block are in memory: of the others two vectors are kept, from which every cost follows, and
the factors wait in files until the threshold is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.architecture.spaces import Space
from pipeline.calibrate.measurements import Scores
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.kronecker.costs import element_costs, group_costs
from pipeline.prune.kronecker.projection import Variant
from pipeline.prune.kronecker.thresholds import group_mask, kth_smallest
from pipeline.prune.kronecker.waiting import WaitingFactors, waiting_factors
from pipeline.prune.methods.surgeon_factors import SINGLE_WEIGHTS, WeightOptions, measured_factors, measured_inputs, projection_of
from pipeline.prune.methods.surgeon_structures import remove_structures
from pipeline.prune.model.masks import Pattern
from pipeline.prune.model.remaining import Remaining, check_widths
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep


@dataclass(frozen=True)
class MeasuredProjection:
    """A projection between measuring and pruning.

    Attributes:
        left: what is left of it.
        rows, columns: curvature along its R rows and its C columns, the bias as a last column.
    """

    left: Remaining
    rows: torch.Tensor
    columns: torch.Tensor

    def costs(self) -> torch.Tensor:
        """Of every weight, shape (R, C), fp32."""
        return element_costs(self.left.weight(self.rows.device), self.rows, self.columns)


def remove_weights(
    model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, options: WeightOptions, events: Events
) -> Iterator[tuple[Step, Scores]]:
    """All shots of a step; the s-th of T leaves s / T of the zeros that are asked for.

    Raises:
        TrimlineError: a projection's inputs are no multiple of the pattern's group.
    """
    pattern, remove = Pattern.parse(step.recipe.pattern), step.recipe.budget[Space.WEIGHT].remove
    assert remove is not None
    check_widths(model, pattern)
    for number in range(1, step.recipe.shots + 1):
        fraction = remove * number / step.recipe.shots
        with waiting_factors(model.geometry.family, model.waiting_bytes) as waiting:
            if options.structures == "published":
                decided = remove_structures(model, windows, fraction, options, waiting, events)
            else:
                decided = Shot(model, pattern, options, waiting).run(windows, fraction, events)
        facts = {"tokens": windows.numel(), "shot": f"{number} of {step.recipe.shots}", "pattern": step.recipe.pattern} | decided
        yield Step(f"{step.recipe.method}, {step.recipe.pattern}", step.record, {}, facts), {}


@dataclass(frozen=True)
class Shot:
    """One round on single weights.

    Attributes:
        model: what is pruned.
        pattern: of the zeros.
        options: the method's.
        waiting: factors, from the sweep to the update.
    """

    model: ShrinkingModel
    pattern: Pattern
    options: WeightOptions
    waiting: WaitingFactors

    def run(self, windows: torch.Tensor, fraction: float, events: Events) -> dict[str, Any]:
        """Measures, finds the threshold, prunes; the numbers behind it."""
        measured = self._inputs_alone if self.options.variant is Variant.L_OBD else self._both_factors
        # Block after block, and what shares a factor together.
        candidates = sorted(measured(windows, events), key=lambda c: (c.left.block, c.left.linear.point, len(c.columns)))
        threshold = self._threshold(candidates, fraction)
        zeros: dict[str, int] = {}
        total = 0
        with events.progress("removing single weights", len(candidates)) as advance:
            for candidate in candidates:
                pruned, block = self._pruned(candidate, threshold), str(candidate.left.block)
                candidate.left.store(pruned, str(self.pattern))
                zeros[block], total = zeros.get(block, 0) + int((pruned == 0).sum()), total + pruned.numel()
                advance(1)
        stated = threshold if math.isfinite(threshold) else None
        return {"threshold": stated, "zero fraction": sum(zeros.values()) / max(total, 1), "zeros per block": zeros}

    def _both_factors(self, windows: torch.Tensor, events: Events) -> Iterator[MeasuredProjection]:
        """Where weights will be updated, the factors are kept."""
        for left, inputs, outputs in measured_factors(self.model, windows, events):
            projection = projection_of(left, inputs, outputs, self.options.damping(SINGLE_WEIGHTS))
            if self.options.variant is Variant.SURGEON:
                self.waiting.put(left.block, left.linear, inputs, outputs)
            yield MeasuredProjection(left, *projection.curvatures(self.options.variant))

    def _inputs_alone(self, windows: torch.Tensor, events: Events) -> Iterator[MeasuredProjection]:
        for left, squares in measured_inputs(self.model, windows, events):
            yield MeasuredProjection(left, squares.new_ones(len(left.rows)), squares)

    def _threshold(self, candidates: Sequence[MeasuredProjection], fraction: float) -> float:
        """What costs no more goes: single weights, or groups of n:m. Infinite where all groups go."""

        def costs() -> Iterator[torch.Tensor]:
            for candidate in candidates:
                counted = self._counted(candidate)
                yield group_costs(counted, self.pattern.zeros, self.pattern.group) if self.pattern.grouped else counted

        share = min(1.0, fraction / (self.pattern.fraction or 1.0))
        everything = sum(piece.numel() for piece in costs())
        count = math.floor(share * everything + 1e-6)
        if count == 0 or (self.pattern.grouped and count == everything):
            return math.inf if count else -math.inf
        return kth_smallest(costs, count)

    def _counted(self, candidate: MeasuredProjection) -> torch.Tensor:
        """Costs of what may go: not of the bias, in a pattern or where the recipe keeps it."""
        kept = self.pattern.grouped or not self.options.biases
        return candidate.costs()[:, : len(candidate.left.columns)] if kept else candidate.costs()

    def _pruned(self, candidate: MeasuredProjection, threshold: float) -> torch.Tensor:
        """New weights of what is left, the bias as a last column."""
        left, costs = candidate.left, self._counted(candidate)
        gone = group_mask(costs, self.pattern.zeros, self.pattern.group, threshold) if self.pattern.grouped else costs <= threshold
        mask = torch.nn.functional.pad(gone, (0, len(candidate.columns) - gone.shape[1]))
        if self.options.variant is not Variant.SURGEON:
            return left.weight(mask.device).masked_fill(mask, 0.0)
        factors = self.waiting.take(left.block, left.linear, len(candidate.columns))
        projection = projection_of(left, *factors, self.options.damping(SINGLE_WEIGHTS))
        return projection.without_elements(mask, self.options.together, self.options.cumulative).float()
