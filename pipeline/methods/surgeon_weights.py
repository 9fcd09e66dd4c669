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
from pydantic import Field

from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep
from pipeline.calibrate.statistics import Needs
from pipeline.calibrate.sweep import sweep
from pipeline.events import Events
from pipeline.families import Linear, Point
from pipeline.kronecker.costs import element_costs, group_costs
from pipeline.kronecker.factors import with_constant
from pipeline.kronecker.projection import Damping, Projection, Variant
from pipeline.kronecker.thresholds import group_mask, kth_smallest
from pipeline.kronecker.updates import MOST_TOGETHER
from pipeline.kronecker.waiting import WaitingFactors, waiting_factors
from pipeline.live import Remaining, check_widths, remaining
from pipeline.masks import Pattern
from pipeline.methods.method import Scores
from pipeline.plan import Step
from pipeline.recipe import PruneStep, Slice, Space
from pipeline.shrinking import ShrinkingModel

PUBLISHED_OUTPUTS_DAMPING = 0.1  # of single weights


class WeightOptions(Slice):
    """Options that say how costs are measured, and how single weights are updated."""

    variant: Variant = Field(
        Variant.SURGEON, description="'k_obd' and 'l_obd' are its baselines: nothing adapts, and for the latter only inputs count"
    )
    damping_inputs: float = Field(0.01, ge=1e-6, le=1e3, description="of A, in units of its mean diagonal")
    damping_outputs: float | None = Field(
        None, ge=1e-6, le=1e3, description="of G; by default as published, 0.1 for single weights and 0.01 for rows and columns"
    )
    together: int = Field(MOST_TOGETHER, ge=0, description="single weights whose correlations are solved for at once; 0 is a whole matrix")
    cumulative: bool = Field(True, description="each such set sees what the sets before it changed")
    biases: bool = Field(True, description="biases count and may go, as published; n:m never takes them")

    def damping(self, published_outputs: float) -> Damping:
        """Of both factors; for G the published value unless the recipe gives one."""
        return Damping(self.damping_inputs, published_outputs if self.damping_outputs is None else self.damping_outputs)


def factors_of(gradients: BlockGradients, linear: Linear, biased: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A (C, C) and G (R, R), means over tokens; with a bias A is that of the inputs and a constant 1, (C + 1, C + 1)."""
    inputs, tokens = gradients.inputs[linear.point] / gradients.tokens, gradients.tokens
    if biased:
        inputs = with_constant(inputs, gradients.totals[linear.point] / tokens)
    return inputs, gradients.outputs[linear.name] / tokens


@dataclass(frozen=True)
class Candidate:
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
    model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, options: WeightOptions, events: Events
) -> list[tuple[Step, Scores]]:
    """All shots of a step; the s-th of T leaves s / T of the zeros that are asked for.

    Raises:
        TrimlineError: a projection's inputs are no multiple of the pattern's group.
    """
    pattern, remove = Pattern.parse(step.pattern), step.budget[Space.WEIGHT].remove
    assert remove is not None
    check_widths(model, pattern)
    done: list[tuple[Step, Scores]] = []
    for number in range(1, step.shots + 1):
        with waiting_factors(model.geometry.family) as waiting:
            decided = Shot(model, pattern, options, waiting).run(windows, remove * number / step.shots, events)
        facts = {"tokens": windows.numel(), "shot": f"{number} of {step.shots}", "pattern": step.pattern} | decided
        done.append((Step(f"{step.method}, {step.pattern}", step.model_dump(mode="json", exclude_none=True), {}, facts), {}))
    return done


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

    def _both_factors(self, windows: torch.Tensor, events: Events) -> Iterator[Candidate]:
        """A sweep backwards; where weights will be updated, the factors are kept."""
        family, variant = self.model.geometry.family, self.options.variant
        needs = GradientNeeds(kronecker=frozenset(linear.name for linear in family.linears))
        for block, gradients in gradient_sweep(self.model.model, family, windows, needs, events):
            for left in remaining(self.model, block):
                inputs, outputs = _restricted(left, *factors_of(gradients, left.linear, left.biased))
                rows, columns = self._projection(left, inputs, outputs).curvatures(variant)
                if variant is Variant.SURGEON:
                    self.waiting.put(block, left.linear, inputs, outputs)
                yield Candidate(left, rows, columns)

    def _inputs_alone(self, windows: torch.Tensor, events: Events) -> Iterator[Candidate]:
        """L-OBD: a sweep forward; A is the mean over all tokens, where the published code keeps the last sequence's."""
        for block, seen in sweep(self.model.model, self.model.geometry.family, windows, Needs(squares=frozenset(Point)), events):
            for left in remaining(self.model, block):
                squares = seen.inputs[left.linear.point].squares[left.columns] / seen.tokens
                columns = torch.cat((squares, squares.new_ones(1))) if left.biased else squares
                yield Candidate(left, squares.new_ones(len(left.rows)), columns)

    def _threshold(self, candidates: Sequence[Candidate], fraction: float) -> float:
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

    def _counted(self, candidate: Candidate) -> torch.Tensor:
        """Costs of what may go: not of the bias, in a pattern or where the recipe keeps it."""
        kept = self.pattern.grouped or not self.options.biases
        return candidate.costs()[:, : len(candidate.left.columns)] if kept else candidate.costs()

    def _pruned(self, candidate: Candidate, threshold: float) -> torch.Tensor:
        """New weights of what is left, the bias as a last column."""
        left, costs = candidate.left, self._counted(candidate)
        gone = group_mask(costs, self.pattern.zeros, self.pattern.group, threshold) if self.pattern.grouped else costs <= threshold
        mask = torch.nn.functional.pad(gone, (0, len(candidate.columns) - gone.shape[1]))
        if self.options.variant is not Variant.SURGEON:
            return left.weight(mask.device).masked_fill(mask, 0.0)
        factors = self.waiting.take(left.block, left.linear, len(candidate.columns))
        return self._projection(left, *factors).without_elements(mask, self.options.together, self.options.cumulative).float()

    def _projection(self, left: Remaining, inputs: torch.Tensor, outputs: torch.Tensor) -> Projection:
        return Projection.of(left.weight(outputs.device), inputs, outputs, self.options.damping(PUBLISHED_OUTPUTS_DAMPING))


def _restricted(left: Remaining, inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and G of the rows and columns that are left; a constant is the last column."""
    columns = torch.cat((left.columns, torch.arange(len(inputs) - left.biased, len(inputs))))
    if (len(columns), len(left.rows)) == (len(inputs), len(outputs)):
        return inputs, outputs
    return inputs[columns][:, columns], outputs[left.rows][:, left.rows]
