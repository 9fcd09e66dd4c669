"""Block influence: how far a block turns the residual stream; the least influential blocks go.

Two measures of the same angle between a block's input and output. CFSP's coarse importance takes the mean angle itself;
ShortGPT (arXiv 2403.03853, eq. 1) takes the mean of 1 − cosine, which weighs the tokens that turn far more heavily. Both
drop the blocks with the smallest score at once, without measuring again.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.step import ResolvedStep


class BlockInfluenceOptions(Slice):
    """Options of block influence."""

    measure: Literal["angular", "cosine"] = Field(
        "angular", description="of a block's input and output: their angle / π, as CFSP takes it, or 1 − cosine, as ShortGPT does"
    )


class BlockInfluence:
    """Scores whole blocks."""

    name = "block_influence"
    spaces = frozenset({Space.LAYER})
    allocation = "global"
    options = BlockInfluenceOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """The angle between a block's input and output."""
        return Needs(distance=True)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """The block's mean angle / π, or mean 1 − cosine, over tokens; shape (1,)."""
        angular = options_of(step, BlockInfluenceOptions).measure == "angular"
        return torch.tensor([view.statistics.mean_distance if angular else view.statistics.mean_influence], dtype=torch.float32)
