"""EAN, the expert activation norm that REAP (arXiv 2510.13999) compares with: Σ over its tokens of the norm of an expert's output.

The router's weight does not enter; how often an expert is chosen does.
"""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.prune.methods.method import BlockView, NoOptions
from pipeline.prune.step import ResolvedStep


class EAN:
    """Experts by the summed norm of their outputs."""

    name = "ean"
    spaces = frozenset({Space.EXPERT})
    allocation = "uniform"
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """What the experts give."""
        return Needs(routed=True)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Σ ‖f‖ per expert, shape (E,)."""
        routed = view.routed
        return routed.norms
