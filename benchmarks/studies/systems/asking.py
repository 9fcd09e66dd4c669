"""How a system is asked for a fraction of the decoder's linear parameters: which units may go, and how many from each block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.prune.recipe import Budget, Pool, PruneStep

TILE = 64
TWO_FOUR = "2:4"
Steps = Callable[[Geometry, float], tuple[PruneStep, ...]]


def ffn_alone(method: str, **more: Any) -> Steps:
    """All of it from the FFN."""
    budget = lambda remove: {Space.FFN: Budget(remove=remove, of="parameters")}  # noqa: E731
    return lambda geometry, remove: (PruneStep(method=method, budget=budget(remove), round_to=TILE, **more),)


def pooled(method: str, spaces: tuple[Space, ...] = (Space.FFN, Space.KV_GROUP), **more: Any) -> Steps:
    """Units of all blocks compete."""
    return lambda geometry, remove: (PruneStep(method=method, pooled=Pool(spaces=spaces, remove=remove), round_to=TILE, **more),)


def whole_blocks(method: str, **more: Any) -> Steps:
    """Blocks, which are all of one size."""
    return lambda geometry, remove: (PruneStep(method=method, budget={Space.LAYER: Budget(remove=remove)}, **more),)


def every_block_alike(method: str, **more: Any) -> Steps:
    """The same from every block: KV groups, and FFN channels for the rest."""
    return lambda geometry, remove: (PruneStep(method=method, budget=even_budget(geometry, remove), round_to=TILE, **more),)


def every_ffn_alike(method: str, **more: Any) -> Steps:
    """The same from the FFN of every block, and nothing else."""
    budget = lambda geometry, remove: {Space.FFN: Budget(keep=even_widths(geometry, remove))}  # noqa: E731
    return lambda geometry, remove: (PruneStep(method=method, budget=budget(geometry, remove), round_to=TILE, **more),)


def two_four(method: str, **more: Any) -> PruneStep:
    """Two zeros in every four inputs of all linears."""
    return PruneStep(method=method, budget={Space.WEIGHT: Budget(remove=0.5)}, pattern=TWO_FOUR, **more)


def anywhere(method: str) -> Callable[[float], PruneStep]:
    """Zeros wherever the method puts them."""
    return lambda remove: PruneStep(method=method, budget={Space.WEIGHT: Budget(remove=remove)})


def even_budget(geometry: Geometry, remove: float) -> dict[Space, Budget]:
    """Sizes that every block keeps: the nearest whole number of KV groups, and FFN widths that make up for the difference.

    Of two equally near numbers of groups the smaller goes.

    Raises:
        TrimlineError: the blocks differ, or less than a tile would be left.
    """
    _demand_alike(geometry)
    first = geometry.blocks[0]
    gone = min(first.kv_groups - 1, math.ceil(first.kv_groups * remove - 0.5))
    budget = {Space.FFN: Budget(keep=even_widths(geometry, remove, gone))}
    return budget | ({Space.KV_GROUP: Budget(keep=first.kv_groups - gone)} if gone else {})


def even_widths(geometry: Geometry, remove: float, groups_gone: int = 0) -> tuple[int, ...]:
    """FFN widths that remove a fraction of the decoder, where every block loses so many KV groups as well.

    They are whole tiles; where the same for all would miss the budget, some blocks, evenly spaced, keep one tile more.

    Raises:
        TrimlineError: the blocks differ, or less than a tile would be left.
    """
    _demand_alike(geometry)
    blocks, first = len(geometry.blocks), geometry.blocks[0]
    channel, group = (geometry.block_parameters(shape) for shape in (BlockShape(1, 0), BlockShape(0, 1)))
    channels = first.ffn * blocks - (remove * geometry.decoder_parameters() - groups_gone * group * blocks) / channel
    tiles = round(min(channels, first.ffn * blocks) / TILE)
    if tiles < blocks:
        raise TrimlineError(f"Removing {remove:.0%} of the decoder leaves less than {TILE} FFN channels per block.", "Remove less.")
    shares = (tiles * (block + 1) // blocks - tiles * block // blocks for block in range(blocks))
    return tuple(min(first.ffn, TILE * share) for share in shares)


def _demand_alike(geometry: Geometry) -> None:
    if not geometry.is_uniform:
        raise TrimlineError("The blocks of this model differ already, and the system treats all alike.", "Start from a dense model.")
