"""MAN (arXiv 2606.15716): the mean over its tokens of the norm of an expert's output, without the router's weight."""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.prune.methods.method import BlockView, NoOptions
from pipeline.prune.step import ResolvedStep


class MAN:
    """Experts by the mean norm of their outputs."""

    name = "man"
    spaces = frozenset({Space.EXPERT})
    allocation = "uniform"
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """What the experts give."""
        return Needs(routed=True)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Mean of ‖f‖ per expert, shape (E,); 0 where no token chose it."""
        routed = view.routed
        return routed.norms / routed.tokens.clamp(min=1)
