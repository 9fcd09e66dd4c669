"""Magnitude: small weights go. The oldest baseline; it measures nothing.

Single weights compete within their matrix, as in the baselines of SparseGPT and Wanda; structured as ``mag_sp`` in
CFSP's code, by the norm of a channel's column in the projection that reads it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.needs import Needs
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, LayerView, options_of
from pipeline.prune.methods.units import sum_per_unit
from pipeline.prune.model.masks import Pattern, n_m, per_matrix
from pipeline.prune.step import ResolvedStep


def magnitude_mask(weight: torch.Tensor, pattern: Pattern, fraction: float) -> torch.Tensor:
    """True where a weight goes: the smallest |w| of the matrix, or of each group of m inputs; shape (R, C)."""
    scores = weight.abs()
    return n_m(scores, pattern.zeros, pattern.group) if pattern.grouped else per_matrix(scores, fraction)


class MagnitudeOptions(Slice):
    """Options of structured magnitude."""

    score: Literal["reader", "product"] = Field(
        "reader", description="norm of a unit's columns in the reader, or the product of its norms in all projections"
    )


class Magnitude:
    """FFN channels, KV groups or single weights by the size of the weights alone."""

    name = "magnitude"
    spaces = frozenset({*SUBLAYERS, Space.WEIGHT})
    allocation = "uniform"
    options = MagnitudeOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Nothing."""
        return Needs()

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """L2 norm per unit, of the reader's columns or multiplied over all projections; shape (units,)."""
        sublayer, family, shape = SUBLAYERS[space], view.geometry.family, view.geometry.blocks[view.number]
        writers = family.writers(sublayer) if options_of(step, MagnitudeOptions).score == "product" else ()
        norms = [
            sum_per_unit(view.weight(linear.name).square(), linear, view.geometry, shape).sqrt()
            for linear in (family.reader(sublayer), *writers)
        ]
        return torch.stack(norms).prod(dim=0)

    def weight_needs(self, step: ResolvedStep) -> Needs:
        """Nothing."""
        return Needs()

    def prune(self, layer: LayerView, pattern: Pattern, remove: float, step: ResolvedStep) -> torch.Tensor:
        """Zeros in place of the smallest weights."""
        return layer.weight.masked_fill(magnitude_mask(layer.weight, pattern, remove), 0.0)
