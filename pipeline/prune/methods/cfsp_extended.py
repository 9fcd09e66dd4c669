"""CFSP carried over to attention: ours, not the authors'. FFN channels as in ``cfsp``, KV groups by the same norm."""

from __future__ import annotations

import torch

from pipeline.architecture.families import Axis, Point, Sublayer
from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import activation_norm
from pipeline.prune.methods.cfsp import CFSP
from pipeline.prune.methods.method import BlockView
from pipeline.prune.step import ResolvedStep


def group_norm(squares: torch.Tensor, sequences: int, width: int) -> torch.Tensor:
    """Activation norm of each KV group, shape (groups,).

    Args:
        squares: Σ x² per input channel of the output projection, shape (groups × width,).
        sequences: calibration sequences.
        width: channels of one group: its query heads times head_dim.
    """
    return activation_norm(squares.view(-1, width).sum(dim=1), sequences)


class CFSPExtended(CFSP):
    """CFSP's score on FFN channels and, by the same reasoning, on KV groups with the query heads that read them."""

    name = "cfsp_extended"
    spaces = frozenset({Space.FFN, Space.KV_GROUP})

    def needs(self, step: ResolvedStep) -> Needs:
        """CFSP's, and squared head outputs where KV groups are asked for."""
        heads = frozenset({Point.HEADS}) if Space.KV_GROUP in step.spaces else frozenset()
        return super().needs(step) | Needs(squares=heads)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Fine importance per FFN channel, or norm per KV group."""
        if space is Space.FFN:
            return super().score(view, space, step)
        squares = view.reader(Sublayer.ATTENTION).squares
        return group_norm(squares, view.statistics.sequences, view.geometry.unit_width(Axis.QUERY))
