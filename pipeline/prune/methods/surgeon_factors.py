"""What LLM Surgeon measures of projections, one block at a time, and the options that say how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.families import Linear, Point
from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.sweep import sweep
from pipeline.common.events import Events
from pipeline.common.slices import Slice
from pipeline.prune.kronecker.factors import with_constant
from pipeline.prune.kronecker.projection import Damping, Projection, Variant
from pipeline.prune.kronecker.updates import MOST_TOGETHER, Correlation
from pipeline.prune.model.remaining import Remaining, remaining
from pipeline.prune.model.shrinking import ShrinkingModel

SINGLE_WEIGHTS, ROWS_AND_COLUMNS = 0.1, 0.01  # published damping of G


class WeightOptions(Slice):
    """Options that say how costs are measured, and how what stays is updated."""

    variant: Variant = Field(
        Variant.SURGEON, description="'k_obd' and 'l_obd' are its baselines: nothing adapts, and for the latter only inputs count"
    )
    damping_inputs: float = Field(0.01, ge=1e-6, le=1e3, description="of A, in units of its mean diagonal")
    damping_outputs: float | None = Field(
        None, ge=1e-6, le=1e3, description="of G; by default as published, 0.1 for single weights and 0.01 for rows and columns"
    )
    structures: Literal["none", "published"] = Field(
        "none", description="of space weight: single weights, or whole rows and columns of each projection by itself, as zeros"
    )
    correlation: Correlation = Field(Correlation.SUM, description="of those rows and columns: how their corrections are put together")
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


def restricted(left: Remaining, inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and G of the rows and columns that are left; a constant is the last column."""
    columns = torch.cat((left.columns, torch.arange(len(inputs) - left.biased, len(inputs))))
    if (len(columns), len(left.rows)) == (len(inputs), len(outputs)):
        return inputs, outputs
    return inputs[columns][:, columns], outputs[left.rows][:, left.rows]


def measured_factors(
    model: ShrinkingModel, windows: torch.Tensor, events: Events
) -> Iterator[tuple[Remaining, torch.Tensor, torch.Tensor]]:
    """A sweep backwards: A and G of everything that is left, as ``factors_of`` gives them; the last block first."""
    family = model.geometry.family
    needs = GradientNeeds(kronecker=frozenset(linear.name for linear in family.linears))
    for block, gradients in gradient_sweep(model.model, family, windows, needs, events, model.waiting_bytes):
        for left in remaining(model, block):
            yield left, *restricted(left, *factors_of(gradients, left.linear, left.biased))
        del gradients  # larger than the block


def measured_inputs(model: ShrinkingModel, windows: torch.Tensor, events: Events) -> Iterator[tuple[Remaining, torch.Tensor]]:
    """A sweep forward: the diagonal of A, shape (C,), mean over all tokens, of everything that is left.

    L-OBD's published code keeps the last sequence's alone.
    """
    for block, seen in sweep(model.model, model.geometry.family, windows, Needs(squares=frozenset(Point)), events):
        for left in remaining(model, block):
            squares = seen.inputs[left.linear.point].squares[left.columns] / seen.tokens
            yield left, torch.cat((squares, squares.new_ones(1))) if left.biased else squares


def projection_of(left: Remaining, inputs: torch.Tensor, outputs: torch.Tensor, damping: Damping) -> Projection:
    """What is left of a projection, with its factors."""
    return Projection.of(left.weight(outputs.device), inputs, outputs, damping)
