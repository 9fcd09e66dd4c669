"""CFSP: coarse-to-fine activation information for structured pruning (arXiv 2409.13199), FFN channels.

The coarse part, block importance and its sigmoid allocation, is in ``pipeline.prune.allocation.cfsp``.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.families import Point, Sublayer
from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import activation_norm
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.step import ResolvedStep


def published_score(norm: torch.Tensor, hidden: int, matrices: int) -> torch.Tensor:
    """The fine score as the authors' code computes it, shape (I,).

    Each weight term is divided by its own sum over the hidden features of the *same* channel and then averaged over
    them, so that every term is 1/hidden whatever the weights: only the activation norm is left.
    """
    return norm * (matrices / hidden)


def normalised_score(norm: torch.Tensor, reader: torch.Tensor, writers: list[torch.Tensor]) -> torch.Tensor:
    """The fine score with weight terms that do not cancel, shape (I,); presumably what was meant.

    Every |weight| is divided by its sum over *channels* for the same hidden feature, so that a term says how much of
    a feature this channel carries; the reader's term is weighted by the activation norm within the sum.

    Args:
        norm: activation norm per channel, shape (I,).
        reader: weight of the projection that reads the channels, shape (H, I).
        writers: weights of those that write them, shape (I, H) each.
    """
    carried = reader.abs() * norm
    share = (carried / carried.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).mean(dim=0)
    for writer in writers:
        share = share + (writer.abs() / writer.abs().sum(dim=0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).mean(dim=1)
    return norm * share


class CFSPOptions(Slice):
    """Options of CFSP."""

    score: Literal["published", "normalised"] = Field(
        "published", description="CFSP's fine score as released, or with weight terms that do not cancel"
    )


class CFSP:
    """Exactly what was published: FFN channels, activation-norm score, allocation by block importance."""

    name = "cfsp"
    spaces = frozenset({Space.FFN})
    allocation = "cfsp"
    options = CFSPOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Angular distance for the allocation, squared channel activations for the score."""
        return Needs(distance=True, squares=frozenset({Point.CHANNELS}))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Fine importance per FFN channel."""
        norm = activation_norm(view.reader(Sublayer.FFN).squares, view.statistics.sequences)
        family = view.geometry.family
        writers = family.writers(Sublayer.FFN)
        if options_of(step, CFSPOptions).score == "published":
            return published_score(norm, view.geometry.hidden, 1 + sum(len(writer.rows) for writer in writers))
        reader = view.weight(family.reader(Sublayer.FFN).name).to(norm.device)
        left = torch.zeros_like(norm)
        left[view.channels_left(Sublayer.FFN).to(norm.device)] = 1  # rows of channels that went keep their weights in the view
        sections = [section for writer in writers for section in view.weight(writer.name).to(norm.device).split(len(norm))]
        return normalised_score(norm, reader, [section * left[:, None] for section in sections])
