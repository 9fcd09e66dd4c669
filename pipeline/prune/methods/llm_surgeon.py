"""LLM Surgeon (arXiv 2312.17244): what goes is what raises the loss least, under Kronecker factors of its curvature.

The maths is in ``pipeline.prune.kronecker``, single weights in ``surgeon_weights``. The published system zeroes rows and columns
of each projection by themselves, and no tensor gets smaller: ``surgeon_structures`` has that. Here the units are those that
can be cut: an FFN channel or a KV group, with every row that writes it and every column that reads it; or a channel of the
residual stream, whose published costs, of a column in each projection that reads it and of a row in each that writes it,
are added up over the model, since there it is one and the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.families import FAMILIES, Axis, Linear, Sublayer
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.gradients import GradientNeeds
from pipeline.calibrate.measurements import Scores
from pipeline.calibrate.needs import Needs
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.kronecker.factors import with_bias
from pipeline.prune.kronecker.projection import Projection, Variant, activation_costs
from pipeline.prune.kronecker.units import coupled_costs
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.methods.surgeon_factors import ROWS_AND_COLUMNS, WeightOptions, factors_of
from pipeline.prune.methods.surgeon_weights import remove_weights
from pipeline.prune.methods.units import linears_of, sum_per_unit
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep

OF_UNITS = {"cost", "per_parameter"}
OF_WEIGHTS = {"structures", "correlation", "together", "cumulative", "biases"}


class SurgeonOptions(WeightOptions):
    """Options of LLM Surgeon."""

    cost: Literal["coupled", "published_sum"] = Field(
        "coupled", description="of a unit: on the side that reads it, or the published costs of its rows and columns added up"
    )
    per_parameter: bool = Field(False, description="costs of units divided by their weights; the published ones are not")


class LLMSurgeon:
    """FFN channels, KV groups and residual channels by what they cost; or single weights, under one threshold and with correlated updates."""

    name = "llm_surgeon"
    spaces = frozenset({*SUBLAYERS, Space.RESIDUAL, Space.WEIGHT})
    allocation = "raw"
    options = SurgeonOptions
    sequential = True  # the factors of one block at a time are in memory

    def check(self, step: ResolvedStep) -> None:
        """Rows and columns follow no pattern, and an option that says nothing is not ignored.

        Raises:
            TrimlineError: the step asks for both, or gives an option of single weights for units, or the other way.
        """
        options = options_of(step, SurgeonOptions)
        idle = options.model_fields_set & (OF_UNITS if Space.WEIGHT in step.spaces else OF_WEIGHTS)
        if idle:
            raise TrimlineError(
                f"The option {min(idle)} of llm_surgeon says nothing about the space {', '.join(step.spaces)}.", "Leave it out."
            )
        if options.structures == "published" and step.recipe.pattern != "unstructured":
            raise TrimlineError(
                f"Whole rows and columns cannot have the pattern {step.recipe.pattern}.", "Leave out the option structures, or the pattern."
            )

    def needs(self, step: ResolvedStep) -> Needs:
        """Kronecker factors of the projections that read the units; of those that write them too, where costs are added up."""
        options, through = options_of(step, SurgeonOptions), Space.RESIDUAL in step.spaces
        sublayers = list(Sublayer) if through else [SUBLAYERS[space] for space in step.spaces]
        linears = linears_of(sublayers)
        if options.cost == "coupled" and not through:
            readers = {family.reader(kind) for family in FAMILIES.values() for kind in sublayers if kind in family.cuttable}
            linears = [linear for linear in linears if linear in readers]
        if options.variant is Variant.L_OBD:
            return Needs(squares=frozenset(linear.point for linear in linears))
        return Needs(gradients=GradientNeeds(kronecker=frozenset(linear.name for linear in linears)))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Cost of removing each unit, shape (units,); of a residual channel, this block's part of it."""
        options = options_of(step, SurgeonOptions)
        if space is Space.RESIDUAL:
            return _stream_costs(view, options)
        sublayer = SUBLAYERS[space]
        if options.cost == "coupled" and options.variant is not Variant.L_OBD:
            costs = _reader_costs(view, sublayer, options, alone=Space.RESIDUAL not in step.spaces)
        else:
            costs = _sum_of_costs(view, sublayer, options)
        return costs / _unit_parameters(view, sublayer) if options.per_parameter else costs

    def run(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Iterator[tuple[Step, Scores]]:
        """Single weights, shot by shot."""
        return remove_weights(model, windows, step, options_of(step, SurgeonOptions), events)


def _reader_costs(view: BlockView, sublayer: Sublayer, options: SurgeonOptions, alone: bool) -> torch.Tensor:
    reader, gradients = view.geometry.family.reader(sublayer), view.statistics.gradients
    assert gradients is not None
    # A is the reader's own, and with it the largest thing here: divided where it lies, unless others read it after.
    inputs = gradients.inputs.pop(reader.point).div_(gradients.tokens) if alone else gradients.inputs[reader.point] / gradients.tokens
    outputs = gradients.outputs[reader.name] / gradients.tokens
    mean = None if view.bias(reader.name) is None else gradients.totals[reader.point] / gradients.tokens
    weight, width = view.weight(reader.name).to(outputs.device), view.geometry.unit_width(reader.columns)
    return coupled_costs(weight, inputs, outputs, width, options.damping_inputs, options.variant, mean)


def _sum_of_costs(view: BlockView, sublayer: Sublayer, options: SurgeonOptions) -> torch.Tensor:
    """Published costs of a unit's columns in the reader and, unless only these are asked for, of its rows in the writers."""
    family, shape = view.geometry.family, view.geometry.blocks[view.number]
    linears = (family.reader(sublayer), *(family.writers(sublayer) if options.cost == "published_sum" else ()))
    costs_of = _activation_costs if options.variant is Variant.L_OBD else _structure_costs
    return torch.stack([sum_per_unit(costs_of(view, linear, options), linear, view.geometry, shape) for linear in linears]).sum(0)


def _activation_costs(view: BlockView, linear: Linear, options: SurgeonOptions) -> torch.Tensor:
    """L-OBD per weight, shape (R, C); a writer's bias counts as one more input."""
    seen, bias = view.statistics.inputs[linear.point], view.bias(linear.name)
    squares = seen.squares / view.statistics.tokens
    weight = view.weight(linear.name).to(squares.device)
    if bias is not None and linear.columns is Axis.RESIDUAL:
        weight, squares = with_bias(weight, bias.to(squares.device)), torch.cat((squares, squares.new_ones(1)))
    return activation_costs(weight, squares)


def _stream_costs(view: BlockView, options: SurgeonOptions) -> torch.Tensor:
    """Published costs of every channel's columns in what reads the stream and rows in what writes it, shape (hidden,)."""
    total = torch.zeros(view.geometry.hidden, dtype=torch.float64)
    for linear in view.geometry.family.linears:
        if not view.left.get(linear.sublayer, (0,)):  # gone, or of a kind that this projection is no part of
            continue
        reads = linear.columns is Axis.RESIDUAL
        if options.variant is Variant.L_OBD:
            costs = _activation_costs(view, linear, options).double()
            costs = costs.sum(0)[: len(total)] if reads else costs.sum(1)
        else:
            costs = _column_costs(view, linear, options) if reads else _projection(view, linear, options).row_costs(options.variant)
        total += costs.cpu()
    return total


def _structure_costs(view: BlockView, linear: Linear, options: SurgeonOptions) -> torch.Tensor:
    """Of every row of a writer, shape (R, 1), or of every column of a reader, shape (1, C)."""
    if linear.columns is Axis.RESIDUAL:
        return _projection(view, linear, options).row_costs(options.variant)[:, None]
    return _column_costs(view, linear, options)[None]


def _column_costs(view: BlockView, linear: Linear, options: SurgeonOptions) -> torch.Tensor:
    """Of every column but a bias's, shape (C,)."""
    return _projection(view, linear, options).column_costs(options.variant)[: view.weight(linear.name).shape[1]]


def _projection(view: BlockView, linear: Linear, options: SurgeonOptions) -> Projection:
    gradients, bias = view.statistics.gradients, view.bias(linear.name)
    assert gradients is not None
    inputs, outputs = factors_of(gradients, linear, bias is not None)
    weight = with_bias(view.weight(linear.name), bias)
    return Projection.of(weight.to(outputs.device), inputs, outputs, options.damping(ROWS_AND_COLUMNS))


def _unit_parameters(view: BlockView, sublayer: Sublayer) -> int:
    """Weights of one unit in all the projections that it is part of."""
    return view.geometry.unit_parameters(sublayer)
