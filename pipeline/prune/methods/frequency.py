"""Frequency: experts that few tokens are routed to go. The baseline that every paper on experts compares with."""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.prune.methods.method import BlockView
from pipeline.prune.methods.of_experts import OfExperts
from pipeline.prune.step import ResolvedStep


class Frequency(OfExperts):
    """Experts by how many tokens chose them."""

    name = "frequency"

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Tokens per expert, shape (E,)."""
        return view.routed.tokens
