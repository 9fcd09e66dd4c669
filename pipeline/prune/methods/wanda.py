"""Wanda (arXiv 2306.11695): a weight matters as much as it is large and its input is; and its structured form, Wanda-sp."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.families import Point
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import activation_norm
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, LayerView, NoOptions, options_of
from pipeline.prune.model.masks import Pattern, row_mask, smallest
from pipeline.prune.step import ResolvedStep

MOST_ALPHA = 0.8
TOLERANCE = 0.001  # of the removed fraction, and of alpha


def wanda_score(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """|W_ij| · ‖x_j‖ (eq. 1), shape (R, C).

    Args:
        weight: shape (R, C).
        norm: activation norm per input, shape (C,): √(mean over sequences of Σ over tokens of x²).
    """
    return weight.abs() * norm


def alpha_mask(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """The variant in the authors' code: every row loses the smallest scores that make up a share α of its sum.

    α is bisected in [0, 0.8] until the whole matrix loses ``fraction`` to within 0.001, or α is known as closely; so
    rows lose different numbers of weights. Scores and result (R, C).
    """
    running = scores.sort(dim=1, stable=True).values.cumsum(dim=1)
    total = scores.sum(dim=1, keepdim=True)
    low, high, alpha = 0.0, MOST_ALPHA, MOST_ALPHA / 2
    while True:
        counts = (running <= alpha * total).sum(dim=1, keepdim=True)
        excess = counts.sum().item() / scores.numel() - fraction
        if abs(excess) <= TOLERANCE or high - low < TOLERANCE:
            return smallest(scores, counts)
        low, high = (low, alpha) if excess > 0 else (alpha, high)
        alpha = (low + high) / 2


def unit_score(reader: torch.Tensor, norm: torch.Tensor, width: int) -> torch.Tensor:
    """Wanda-sp: mean over outputs of |W_ij| · ‖x_j‖, summed over the channels of a unit; shape (units,).

    Args:
        reader: weight of the projection that reads the units, shape (R, units × width).
        norm: activation norm per input, shape (units × width,).
        width: channels of a unit: 1 for FFN channels, query heads × head_dim for KV groups.
    """
    return wanda_score(reader, norm).mean(dim=0).view(-1, width).sum(dim=1)


class WandaOptions(Slice):
    """Options of Wanda."""

    select: Literal["row", "alpha"] = Field(
        "row", description="unstructured: the same number from every row, or the same share α of every row's score"
    )


class Wanda:
    """Single weights, compared within each row; those that stay keep their values."""

    name = "wanda"
    spaces = frozenset({Space.WEIGHT})
    options = WandaOptions

    def weight_needs(self, step: ResolvedStep) -> Needs:
        """Squared inputs of every projection."""
        return Needs(squares=frozenset(Point))

    def prune(self, layer: LayerView, pattern: Pattern, remove: float, step: ResolvedStep) -> torch.Tensor:
        """Zeros in place of the weights with the lowest scores."""
        assert layer.inputs is not None
        scores = wanda_score(layer.weight, activation_norm(layer.inputs.squares, layer.statistics.sequences))
        by_alpha = options_of(step, WandaOptions).select == "alpha" and not pattern.grouped
        gone = alpha_mask(scores, remove) if by_alpha else row_mask(scores, pattern, remove)
        return layer.weight.masked_fill(gone, 0.0)


class WandaStructured:
    """Wanda-sp, the baseline in FLAP's code (arXiv 2312.11983): FFN channels and heads, every block alike, block after block.

    The published heads are KV groups here, with all query heads that read them.
    """

    name = "wanda_sp"
    spaces = frozenset(SUBLAYERS)
    allocation = "uniform"
    sequential = True
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Squared inputs of the readers."""
        return Needs(squares=frozenset(SUBLAYERS[space].point for space in step.spaces))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Score per FFN channel or KV group."""
        reader = view.geometry.family.reader(SUBLAYERS[space])
        norm = activation_norm(view.reader(SUBLAYERS[space]).squares, view.statistics.sequences)
        return unit_score(view.weight(reader.name).to(norm.device), norm, view.geometry.unit_width(reader.columns))
