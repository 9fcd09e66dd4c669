"""What can be removed, and which sublayer of a block it belongs to."""

from __future__ import annotations

from enum import StrEnum

import torch

from pipeline.architecture.families import Sublayer


class Space(StrEnum):
    """What can be removed."""

    FFN = "ffn"
    KV_GROUP = "kv_group"
    LAYER = "layer"
    RESIDUAL = "residual"  # channels of the residual stream, the same in every block
    WEIGHT = "weight"  # single weights of every projection in the blocks; no shape changes


# The one table: which sublayer of a block a space's units are in. Blocks and channels of the residual stream are in none.
SUBLAYERS = {Space.FFN: Sublayer.FFN, Space.KV_GROUP: Sublayer.ATTENTION}
SPACES = {sublayer: space for space, sublayer in SUBLAYERS.items()}


def channels(units: tuple[int, ...], width: int) -> torch.Tensor:
    """Unit numbers into channel numbers, shape (units × width,)."""
    return (torch.tensor(units, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()
