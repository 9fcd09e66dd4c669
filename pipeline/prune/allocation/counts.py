"""Fractions or pooled scores into whole numbers of units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pipeline.common.errors import TrimlineError

PUBLISHED_TILE = 128


def published_count(width: int, fraction: float, tile: int) -> int:
    """Channels that the released CFSP code keeps.

    Without rounding (tile 1) it keeps ⌊width·fraction⌋ + 1, since it compares with ≥; with 128-rounding it rounds to
    the nearest multiple. Where that is 0 its index runs off the end and the block keeps everything, and where it
    exceeds the width it fails: here one tile stays, and no more than the width.
    """
    if tile == 1:
        return min(width, math.floor(width * fraction) + 1)
    nearest = tile * math.floor((width * fraction + tile / 2) / tile)
    return min(width, max(tile, nearest))


def nearest_tile(width: int, fraction: float, tile: int) -> int:
    """The multiple of ``tile`` nearest to width × fraction, at least one tile: blocks of one width stay alike.

    Raises:
        TrimlineError: the tile is wider than the block.
    """
    _check_tile(tile, width)
    return min(width, tile * max(1, round(width * fraction / tile)))


def tiled_counts(widths: Sequence[int], fractions: Sequence[float], tile: int) -> list[int]:
    """Multiples of ``tile`` nearest to width × fraction whose sum keeps the budget to within half a tile.

    Largest remainder: every block gets the whole tiles below its share, at least one; the tiles that are left go
    to the blocks that are furthest below theirs. A block whose width is no multiple may keep all of it.

    Raises:
        TrimlineError: a tile is wider than a block, or one tile per block already exceeds the budget.
    """
    _check_tile(tile, min(widths))
    shares = [width * fraction for width, fraction in zip(widths, fractions, strict=True)]
    target = sum(shares)
    if target < tile * len(widths) - tile / 2:
        most = 1 - tile * len(widths) / sum(widths)
        raise TrimlineError(
            f"The budget leaves {target / len(widths):.0f} units per block, less than one tile of {tile}.",
            f"Remove at most {most:.3f} of the units, or give a smaller round_to.",
        )
    counts = [min(width, max(tile, tile * math.floor(share / tile))) for width, share in zip(widths, shares, strict=True)]
    while sum(counts) + tile / 2 <= target:
        open_blocks = [i for i, count in enumerate(counts) if count < widths[i]]
        neediest = max(open_blocks, key=lambda i: (shares[i] - counts[i], -i))
        counts[neediest] = min(widths[neediest], counts[neediest] + tile)
    while sum(counts) - tile / 2 > target:
        richest = max((i for i, count in enumerate(counts) if count > tile), key=lambda i: (counts[i] - shares[i], i))
        counts[richest] = tile * math.ceil(counts[richest] / tile - 1)
    return counts


def pooled_counts(scores: Sequence[torch.Tensor], keep: int, minimum: int, standardised: bool = True) -> list[int]:
    """How many units each block keeps when all compete under one global threshold, per-block z-scores or the scores as they are.

    Standardising (as FLAP does, arXiv 2312.11983, section 3.2) makes blocks of different scale comparable; scores that
    are in units of the loss (LLM Surgeon's) are so already. Every block keeps its ``minimum`` best whatever happens.

    Args:
        scores: per block, shape (units,).
        keep: how many stay in all.
        minimum: how many stay in every block at least.
        standardised: by z-scores.
    """
    competing = [_z_scores(score) if standardised else score.double().clone() for score in scores]
    guaranteed = [z.argsort(descending=True, stable=True)[:minimum] for z in competing]
    for z, best in zip(competing, guaranteed, strict=True):
        z[best] = math.inf
    pooled = torch.cat(competing)
    owner = torch.repeat_interleave(torch.arange(len(scores)), torch.tensor([len(z) for z in competing]))
    kept = pooled.argsort(descending=True, stable=True)[:keep]
    return torch.bincount(owner[kept], minlength=len(scores)).tolist()


def _check_tile(tile: int, narrowest: int) -> None:
    if tile > narrowest:
        raise TrimlineError(f"A tile of {tile} is wider than the narrowest block ({narrowest}).", "Give a smaller round_to.")


def _z_scores(score: torch.Tensor) -> torch.Tensor:
    score = score.double()
    spread = score.std() if len(score) > 1 else torch.tensor(0.0)
    return torch.zeros_like(score) if spread == 0 else (score - score.mean()) / spread
