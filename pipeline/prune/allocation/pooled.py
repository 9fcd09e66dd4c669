"""One budget over several spaces: all units compete by score, and each counts for what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import SUBLAYERS, Counts, IndexSet, Space, per_space
from pipeline.calibrate.measurements import Scores
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.counts import nearest_tile, tiled_counts
from pipeline.prune.recipe import Pool, PruneStep


def pooled_allocation(
    geometry: Geometry, step: PruneStep, scores: Scores, costs: Mapping[Space, float] | None = None
) -> tuple[Counts, dict[str, Any]]:
    """How many units of each space every block keeps, and the numbers behind it.

    FLAP's rule (arXiv 2312.11983, section 3.3): sort all units by score, add up what they cost from the top, and cut where
    the sum is nearest to what may stay; what scores strictly more stays. Rounding as in ``rounded_counts``.

    Args:
        geometry: the model as it is now; its blocks are those of ``scores``, in order.
        step: with ``pooled``.
        scores: per space and original block, over the units that are left; comparable with one another.
        costs: per space, what a unit counts for; by default what it costs in the budget's own measure.

    Raises:
        TrimlineError: the spaces hold less than is to go.
    """
    pool = step.pooled
    assert pool is not None
    sizes = unit_sizes(geometry, pool)
    keep = _share_to_keep(geometry, pool, sizes)
    threshold = pooled_threshold(scores, costs or sizes, keep)
    counts = rounded_counts(above(scores, dict.fromkeys(scores, threshold)), step, scores)
    return counts, {"threshold": threshold, "share kept of the spaces": keep, "kept": kept_facts(counts)}


def kept_facts(counts: Counts) -> dict[str, list[int]]:
    """What a plan says of them."""
    return {space.value: by_block for space, by_block in per_space(counts).items()}


def above(scores: Scores, thresholds: Mapping[Space, float]) -> Counts:
    """How many units of every block score strictly more than their space's threshold."""
    return {
        IndexSet(space, block): int((score.double() > thresholds[space]).sum())
        for space, by_block in scores.items()
        for block, score in by_block.items()
    }


def rounded_counts(counts: Counts, step: PruneStep, scores: Scores, even: bool = False) -> Counts:
    """Counts that the recipe allows: FFN widths in tiles, and no empty block unless it says so.

    With ``rounding: published`` they stay as they are, which may leave a block without attention or FFN.

    Args:
        counts: how many units of every block should stay.
        step: with ``pooled``.
        scores: per space and block, over the units that are left.
        even: blocks that are alike stay alike; otherwise tiles are shared out so that the sum stays what it is.
    """
    if step.rounding == "published":
        return counts
    assert step.pooled is not None
    allow_empty = step.pooled.allow_empty
    counts = _with_floor(counts, scores, 0 if allow_empty else 1)
    ffn = {units: count for units, count in counts.items() if units.space is Space.FFN}
    if ffn and step.round_to > 1:
        widths = {units: len(scores[units.space][units.block]) for units in ffn}
        counts = counts | (_alike(ffn, widths, step.round_to) if even else _tiled(ffn, widths, step.round_to, allow_empty))
    return counts


def whole_of(geometry: Geometry, pool: Pool) -> int:
    """All blocks in the budget's measure."""
    return geometry.decoder_parameters() if pool.of == "parameters" else geometry.decoder_flops(pool.context)


def unit_sizes(geometry: Geometry, pool: Pool) -> dict[Space, float]:
    """What one unit of each space costs in the budget's measure (parameters or FLOPs of the blocks)."""

    def cost(block: BlockShape) -> int:
        return geometry.block_parameters(block) if pool.of == "parameters" else geometry.block_flops(block, pool.context)

    def of_one(sublayer: Sublayer) -> float:  # the second, since a carried part comes along with the first
        return float(cost(BlockShape.alone(sublayer, 2)) - cost(BlockShape.alone(sublayer)))

    return {space: of_one(SUBLAYERS[space]) for space in pool.spaces}


def pooled_threshold(scores: Scores, costs: Mapping[Space, float], keep: float) -> float:
    """The score above which units stay, so that their cost is nearest to ``keep`` times that of all."""
    flat = torch.cat([score.double() for by_block in scores.values() for score in by_block.values()])
    cost = torch.cat([torch.full((len(s),), costs[space]).double() for space, by_block in scores.items() for s in by_block.values()])
    order = flat.argsort(descending=True, stable=True)
    total = cost[order].cumsum(0)
    place = int((total - keep * total[-1]).abs().argmin())
    return flat[order][place].item()


def _share_to_keep(geometry: Geometry, pool: Pool, sizes: Mapping[Space, float]) -> float:
    """Of the pooled units' cost, the part that stays."""
    whole = whole_of(geometry, pool)
    pooled = sum(sum(block.units(SUBLAYERS[space]) for block in geometry.blocks) * size for space, size in sizes.items())
    if pool.remove * whole >= pooled:
        raise TrimlineError(
            f"Removing {pool.remove:.0%} of the decoder's {pool.of} is not possible: the spaces hold {pooled / whole:.1%} of them.",
            f"Ask for less than {pooled / whole:.3f}, or pool more spaces.",
        )
    return 1 - pool.remove * whole / pooled


def _with_floor(counts: Counts, scores: Scores, least: int) -> Counts:
    return {units: max(count, min(least, len(scores[units.space][units.block]))) for units, count in counts.items()}


def _alike(counts: Counts, widths: Counts, tile: int) -> Counts:
    return {units: nearest_tile(widths[units], count / widths[units], tile) if widths[units] else 0 for units, count in counts.items()}


def _tiled(counts: Counts, widths: Counts, tile: int, allow_empty: bool) -> Counts:
    """Nearest multiples of the tile with the same sum; a block below half a tile goes where that is allowed."""
    filled = [units for units, count in counts.items() if widths[units] and (not allow_empty or count >= tile / 2)]
    shares = [counts[units] / widths[units] for units in filled]
    tiled = tiled_counts([widths[units] for units in filled], shares, tile)
    return dict.fromkeys(counts, 0) | dict(zip(filled, tiled, strict=True))
