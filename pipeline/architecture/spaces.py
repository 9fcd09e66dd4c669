"""What can be removed, and which sublayer of a block it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, TypeVar

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape


class Space(StrEnum):
    """What can be removed."""

    FFN = "ffn"
    KV_GROUP = "kv_group"
    LAYER = "layer"
    RESIDUAL = "residual"  # channels of the residual stream, the same in every block
    EXPERT = "expert"  # routed experts of a mixture
    WEIGHT = "weight"  # single weights of every projection in the blocks; no shape changes


# The one table: which sublayer of a block a space's units are in. Blocks and channels of the residual stream are in none.
SUBLAYERS = {Space.FFN: Sublayer.FFN, Space.KV_GROUP: Sublayer.ATTENTION}
SPACES = {sublayer: space for space, sublayer in SUBLAYERS.items()}
IN_BLOCKS = (*SUBLAYERS, Space.EXPERT)  # spaces of which every block has several units; experts are no sublayer of their own


T = TypeVar("T")


class IndexSet(NamedTuple):
    """Units that are numbered together: a block's FFN channels, a block's KV groups.

    Attributes:
        space: what they are.
        block: original number of their block.
    """

    space: Space
    block: int


# How many units stay. Of space layer 1 or 0 per block; of the residual stream the same number for every block.
Counts = dict[IndexSet, int]


def per_space(by_set: Mapping[IndexSet, T]) -> dict[Space, list[T]]:
    """The values of each space, in their order."""
    found: dict[Space, list[T]] = {}
    for units, value in by_set.items():
        found.setdefault(units.space, []).append(value)
    return found


def units_in(block: BlockShape, space: Space) -> int:
    """How many units of a space of ``IN_BLOCKS`` a block has."""
    return block.experts if space is Space.EXPERT else block.units(SUBLAYERS[space])


def with_units_in(block: BlockShape, space: Space, units: int) -> BlockShape:
    """The same block with another number of them."""
    return replace(block, experts=units) if space is Space.EXPERT else block.with_units(SUBLAYERS[space], units)


def channels(units: tuple[int, ...], width: int) -> torch.Tensor:
    """Unit numbers into channel numbers, shape (units × width,)."""
    return (torch.tensor(units, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()
