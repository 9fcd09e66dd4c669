"""Block influence: how far a block turns the residual stream; the least influential blocks go.

The measure is CFSP's coarse importance (mean angular distance between a block's input and output); ShortGPT
(arXiv 2403.03853, eq. 1) uses 1 − cosine of the same two vectors.
"""

from __future__ import annotations

import torch

from pipeline.calibrate.statistics import Needs
from pipeline.methods.method import BlockView, NoOptions
from pipeline.recipe import PruneStep, Space


class BlockInfluence:
    """Scores whole blocks."""

    name = "block_influence"
    spaces = frozenset({Space.LAYER})
    allocation = "global"
    options = NoOptions

    def needs(self, step: PruneStep) -> Needs:
        """Angular distance only."""
        return Needs(distance=True)

    def score(self, view: BlockView, space: Space, step: PruneStep) -> torch.Tensor:
        """The block's mean angular distance, shape (1,)."""
        return torch.tensor([view.statistics.mean_distance], dtype=torch.float32)
