"""GBLM-Pruner (arXiv 2311.04902, algorithm 1): Wanda's score plus the size of the weight times that of its gradients.

Gradients are those of the dense model, of one loss per sequence (mean cross-entropy), and never of a pruned prefix.
The published weight of the gradient term is 100, of a sum over 128 sequences of 2048 tokens that is nowhere divided by
their number: with other numbers of sequences it would mean something else. ``normalised`` is therefore the mean over
sequences times 128. With fewer tokens per sequence gradients are noisier and activation norms smaller; that stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.families import Linear, Sublayer
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.gradients import GradientNeeds
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import InputStatistics, activation_norm
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, LayerView, options_of
from pipeline.prune.methods.units import linears_of, total_per_unit
from pipeline.prune.methods.wanda import wanda_score
from pipeline.prune.model.masks import Pattern, row_mask
from pipeline.prune.step import ResolvedStep

SCALE = 100.0  # the paper's α
SEQUENCES = 128  # that α was chosen with
Norm = Literal["l1", "l2"]


def normalised_aggregate(sums: torch.Tensor, sequences: int, norm: Norm) -> torch.Tensor:
    """Γ in fp32, as if there had been 128 sequences, shape (R, C).

    Args:
        sums: Σ|g| over sequences for ``l1``, Σg² for ``l2``, shape (R, C).
        sequences: how many there were.
    """
    total = sums.float() * (SEQUENCES / sequences)
    return (total.sqrt_() if norm == "l2" else total).mul_(SCALE)


def gblm_score(weight: torch.Tensor, aggregate: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
    """|W_ij| · ‖x_j‖ + |W_ij| · Γ_ij, shape (R, C), fp32; a fp16 Γ is multiplied in fp16, as published.

    Args:
        weight: shape (R, C).
        aggregate: Γ, shape (R, C).
        norm: activation norm per input, shape (C,); None leaves the gradient's term alone.
    """
    slope = (weight.abs().to(aggregate.dtype) * aggregate).float()
    return slope if norm is None else wanda_score(weight.float(), norm) + slope


class GBLMOptions(Slice):
    """Options of GBLM-Pruner."""

    norm: Norm = Field("l1", description="of the gradients over sequences")
    accumulation: Literal["normalised", "published"] = Field(
        "normalised",
        description="as if there had been 128 sequences, in fp32; or the authors' plain sum of gradients in fp16, for l1 in fp16 itself",
    )
    score: Literal["full", "gradient"] = Field("full", description="with Wanda's term, or the gradient's alone")


class GBLM:
    """Single weights compared within each row; or, ours, FFN channels and KV groups by the sum over their weights."""

    name = "gblm"
    spaces = frozenset({*SUBLAYERS, Space.WEIGHT})
    allocation = "uniform"
    options = GBLMOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Gradients of every projection that the units have weights in, and squares of what these read."""
        return _needs(step, [SUBLAYERS[space] for space in step.spaces])

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Σ of the scores of a unit's weights, shape (units,)."""
        options, seen = options_of(step, GBLMOptions), view.statistics
        assert seen.gradients is not None
        absolute, squares = seen.gradients.absolute, seen.gradients.squares

        def values(linear: Linear) -> torch.Tensor:
            weight = view.weight(linear.name)
            return _score(options, weight, seen.inputs.get(linear.point), seen.sequences, absolute[linear.name], squares[linear.name])

        return total_per_unit(values, SUBLAYERS[space], view.geometry, view.number)

    def weight_needs(self, step: ResolvedStep) -> Needs:
        """The same for all projections."""
        return _needs(step, Sublayer)

    def prune(self, layer: LayerView, pattern: Pattern, remove: float, step: ResolvedStep) -> torch.Tensor:
        """Zeros in place of the weights with the lowest scores."""
        options, sequences = options_of(step, GBLMOptions), layer.statistics.sequences
        scores = _score(options, layer.weight, layer.inputs, sequences, layer.absolute, layer.squares)
        return layer.weight.masked_fill(row_mask(scores, pattern, remove), 0.0)


def _needs(step: ResolvedStep, sublayers: Iterable[Sublayer]) -> Needs:
    options, linears = options_of(step, GBLMOptions), linears_of(sublayers)
    points = frozenset(linear.point for linear in linears) if options.score == "full" else frozenset()
    half = options.accumulation == "published"
    return Needs(squares=points, gradients=GradientNeeds(frozenset(linear.name for linear in linears), half=half))


def _score(
    options: GBLMOptions,
    weight: torch.Tensor,
    inputs: InputStatistics | None,
    sequences: int,
    absolute: torch.Tensor | None,
    squares: torch.Tensor | None,
) -> torch.Tensor:
    """The score that the options name, on the device of the gradients."""
    sums = absolute if options.norm == "l1" else squares
    assert sums is not None
    if options.accumulation == "published":  # the sweep has rounded already (GradientNeeds.half)
        aggregate = (SCALE * (sums if options.norm == "l1" else sums.sqrt())).half()
    else:
        aggregate = normalised_aggregate(sums, sequences, options.norm)
    norm = None
    if options.score == "full":
        assert inputs is not None
        norm = activation_norm(inputs.squares, sequences)
    return gblm_score(weight.to(sums.device), aggregate, norm)
