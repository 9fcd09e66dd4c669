"""Frequency: experts that few tokens are routed to go. The baseline that every paper on experts compares with."""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.prune.methods.method import BlockView, NoOptions
from pipeline.prune.step import ResolvedStep


class Frequency:
    """Experts by how many tokens chose them."""

    name = "frequency"
    spaces = frozenset({Space.EXPERT})
    allocation = "uniform"
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """What the experts give."""
        return Needs(routed=True)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Tokens per expert, shape (E,)."""
        routed = view.routed
        return routed.tokens
