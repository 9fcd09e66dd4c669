"""MAN (arXiv 2606.15716): the mean over its tokens of the norm of an expert's output, without the router's weight."""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.prune.methods.method import BlockView
from pipeline.prune.methods.of_experts import OfExperts
from pipeline.prune.step import ResolvedStep


class MAN(OfExperts):
    """Experts by the mean norm of their outputs."""

    name = "man"

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Mean of ‖f‖ per expert, shape (E,); 0 where no token chose it."""
        return view.routed.norms / view.routed.tokens.clamp(min=1)
