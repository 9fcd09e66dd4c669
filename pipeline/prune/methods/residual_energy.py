"""Residual energy: channels of the residual stream by what their readers get from them. Ours; a baseline for that space.

A projection gets x_c W[:, c] from channel c of its normalised input, Σ_t x_c² ‖W[:, c]‖² over the tokens. In every block, and
there at both places where projections read the stream, that is divided by its sum over the channels, so that each place
counts alike whatever its scale; the shares are then added up. A channel that goes is zero for every reader and writer.
"""

from __future__ import annotations

import torch

from pipeline.architecture.families import Point
from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.prune.methods.method import BlockView, NoOptions
from pipeline.prune.step import ResolvedStep

READING = (Point.ATTENTION_INPUT, Point.FFN_INPUT)


def energy_share(squares: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Each channel's part of Σ_c Σ_t x_c² ‖W[:, c]‖², shape (C,), fp64; zeros where nothing is read.

    Args:
        squares: Σ x² over tokens, shape (C,).
        weights: of the projections that read it, shape (R, C) each.
    """
    energy = squares.double() * torch.stack([weight.double().square().sum(dim=0) for weight in weights]).sum(dim=0)
    return energy / energy.sum().clamp_min(torch.finfo(torch.float64).tiny)


class ResidualEnergy:
    """Channels of the residual stream, the same in all blocks."""

    name = "residual_energy"
    spaces = frozenset({Space.RESIDUAL})
    allocation = "uniform"
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Squared inputs of the projections that read the stream."""
        return Needs(squares=frozenset(READING))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """This block's part of each channel's energy, shape (hidden,); a sublayer that is gone reads nothing."""
        family = view.geometry.family
        share = torch.zeros(view.geometry.hidden, dtype=torch.float64)
        for point in READING:
            readers = [linear for linear in family.reading(point) if view.left.get(linear.sublayer, (0,))]
            if readers:
                share += energy_share(view.statistics.inputs[point].squares.cpu(), [view.weight(linear.name) for linear in readers])
        return share.float()
