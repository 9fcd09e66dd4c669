"""EAN, the expert activation norm that REAP (arXiv 2510.13999) compares with: Σ over its tokens of the norm of an expert's output.

The router's weight does not enter; how often an expert is chosen does.
"""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import Space
from pipeline.prune.methods.method import BlockView
from pipeline.prune.methods.of_experts import OfExperts
from pipeline.prune.step import ResolvedStep


class EAN(OfExperts):
    """Experts by the summed norm of their outputs."""

    name = "ean"

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Σ ‖f‖ per expert, shape (E,)."""
        return view.routed.norms
