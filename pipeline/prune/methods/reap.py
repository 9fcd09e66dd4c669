"""REAP (arXiv 2510.13999): an expert matters as much as it adds to the stream of the tokens that choose it.

S_j is the mean over the tokens routed to expert j of g_j ‖f_j‖ (eq. 9), f_j its output before it is weighted. Two readings of g:

- ``renormalised``: the router's weight over the sum of the chosen experts' weights, the default of the authors' code since March 2026;
- ``published``: the softmax of the router's logits over all experts, as their code had it first.

An expert that no token chose scores 0. No weights change, and top k stays. llm-compressor scores block after block, later blocks on what
the pruned ones before them give: ``sequential: true`` in the step.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.spaces import Space
from pipeline.calibrate.routed import RoutedStatistics
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.methods.of_experts import OfExperts
from pipeline.prune.step import ResolvedStep


def reap_score(routed: RoutedStatistics, renormalised: bool = True) -> torch.Tensor:
    """Mean of g ‖f‖ over the tokens of each expert, shape (E,)."""
    return (routed.gated if renormalised else routed.scored) / routed.tokens.clamp(min=1)


class REAPOptions(Slice):
    """Options of REAP."""

    gates: Literal["renormalised", "published"] = Field(
        "renormalised", description="the router's weights over the sum of the chosen ones', or its softmax over all experts"
    )


class REAP(OfExperts):
    """Experts by what they add, weighted by the router."""

    name = "reap"
    options = REAPOptions

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Score per expert, shape (E,)."""
        return reap_score(view.routed, options_of(step, REAPOptions).gates == "renormalised")
