"""Scores and a step's budgets into the units that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Space, units_in
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.budget import removed_fraction
from pipeline.prune.allocation.cfsp import retained_fractions
from pipeline.prune.allocation.counts import PUBLISHED_TILE, nearest_tile, pooled_counts, published_count, tiled_counts
from pipeline.prune.allocation.experts import experts_to_keep
from pipeline.prune.recipe import Budget, PruneStep

FEASIBLE = 0.05  # a budget of few, coarse units counts as met within this fraction of them


@dataclass(frozen=True)
class Allocation:
    """How many units of a space each block keeps, and the numbers behind it."""

    counts: tuple[int, ...]
    facts: dict[str, Any]


def allocate(
    step: PruneStep, space: Space, rule: str, geometry: Geometry, scores: Sequence[torch.Tensor], mean_distance: torch.Tensor | None
) -> Allocation:
    """Kept units per block of ``geometry`` (the model as it is now).

    Args:
        step: the recipe's step.
        space: FFN, KV_GROUP or EXPERT.
        rule: ``cfsp``, ``uniform``, ``global`` or ``raw``.
        geometry: sizes before this step.
        scores: per block, over the units that are still there.
        mean_distance: per block, for CFSP's rule.

    Raises:
        TrimlineError: the budget cannot be met; says what could.
    """
    budget = step.budget[space]
    widths = [units_in(block, space) for block in geometry.blocks]
    if space is Space.EXPERT:
        kept = experts_to_keep(budget, geometry)
        return Allocation(tuple(min(width, kept) for width in widths), {})
    if budget.keep is not None:
        return Allocation(_given_counts(budget, space, widths), {})
    remove = removed_fraction(budget, space, geometry)
    there = [number for number, width in enumerate(widths) if width]  # an earlier step may have emptied the others
    distance = None if mean_distance is None else mean_distance[there]
    fractions = _fractions(step, space, rule, [widths[n] for n in there], [scores[n] for n in there], distance, remove)
    counts = dict(zip(there, _whole(step, space, rule, [widths[n] for n in there], fractions, remove), strict=True))
    facts = {"removed fraction of units asked for": remove, "retained fractions": fractions}
    return Allocation(tuple(counts.get(number, 0) for number in range(len(widths))), facts)


def _fractions(
    step: PruneStep,
    space: Space,
    rule: str,
    widths: list[int],
    scores: Sequence[torch.Tensor],
    mean_distance: torch.Tensor | None,
    remove: float,
) -> list[float]:
    """Retained fraction per block, before rounding; no block is empty."""
    if rule in ("global", "raw"):
        counts = pooled_counts(scores, round((1 - remove) * sum(widths)), min(step.tile(space), min(widths)), standardised=rule == "global")
        return [count / width for count, width in zip(counts, widths, strict=True)]
    if rule == "cfsp" and space is Space.FFN:
        assert mean_distance is not None
        return _meeting_budget(retained_fractions(mean_distance, remove, step.sharpness).tolist(), widths, remove)
    return [1 - remove] * len(widths)


def _meeting_budget(fractions: list[float], widths: list[int], remove: float) -> list[float]:
    """CFSP's fractions average to the budget over *blocks*; where widths differ already, scaled to meet it over units.

    Blocks that would exceed their width keep all of it, and the others take over what is left.
    """
    target = (1 - remove) * sum(widths)
    for _ in widths:
        free = [i for i, fraction in enumerate(fractions) if fraction < 1]
        open_units = sum(widths[i] * fractions[i] for i in free)
        missing = target - sum(width * fraction for width, fraction in zip(widths, fractions, strict=True))
        if abs(missing) < 1e-9 * target or not free or open_units == 0:
            break
        fractions = [min(1.0, f * (1 + missing / open_units)) if i in free else f for i, f in enumerate(fractions)]
    return fractions


def blocks_to_keep(budget: Budget, geometry: Geometry) -> int:
    """How many blocks stay under a budget of space layer.

    Raises:
        TrimlineError: that is none, or more than there are.
    """
    blocks = len(geometry.blocks)
    if isinstance(budget.keep, tuple):
        raise TrimlineError("The budget of space layer keeps a list of sizes.", "Give one number: how many blocks stay.")
    remove = None if budget.keep is not None else removed_fraction(budget, Space.LAYER, geometry)
    count = round((1 - remove) * blocks) if remove is not None else budget.keep
    assert count is not None
    if not 1 <= count <= blocks:
        raise TrimlineError(f"The budget keeps {count} of {blocks} blocks.", f"Keep between 1 and {blocks}.")
    if remove is not None and abs(1 - count / blocks - remove) > FEASIBLE:
        raise TrimlineError(
            f"Removing {remove:.0%} of the space layer is not possible with {blocks} blocks.",
            f"Ask for one of {', '.join(f'{gone / blocks:.3f}' for gone in range(blocks))}.",
        )
    return count


def channels_to_keep(budget: Budget, geometry: Geometry, tile: int) -> int:
    """How many channels of the residual stream stay: what ``budget`` says, or the multiple of ``tile`` nearest to it.

    Raises:
        TrimlineError: that is more than there are, or the budget is further than half a tile from any multiple.
    """
    if isinstance(budget.keep, tuple):
        raise TrimlineError("The budget of space residual keeps a list of sizes.", "Give one number: all blocks share the channels.")
    if budget.keep is not None:
        if budget.keep > geometry.hidden:
            raise TrimlineError(f"The budget keeps {budget.keep} of {geometry.hidden} channels.", f"Keep at most {geometry.hidden}.")
        return budget.keep
    wanted = 1 - removed_fraction(budget, Space.RESIDUAL, geometry)
    kept = nearest_tile(geometry.hidden, wanted, tile)
    if abs(kept - wanted * geometry.hidden) > tile / 2 + 1e-6:
        raise TrimlineError(
            f"Removing {1 - wanted:.1%} of the residual stream leaves less than one tile of {tile} channels.", "Give a smaller round_to."
        )
    return kept


def keep_best(score: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the ``count`` highest scores; among equals the lower index stays."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def _whole(step: PruneStep, space: Space, rule: str, widths: list[int], fractions: list[float], remove: float) -> list[int]:
    if space is Space.KV_GROUP:
        counts = [max(1, round(width * fraction)) for width, fraction in zip(widths, fractions, strict=True)]
        _demand_met(space, widths, counts, remove)
        return counts
    if step.rounding == "published":
        if step.round_to not in (1, PUBLISHED_TILE):
            raise TrimlineError(f"The published rounding knows no tile of {step.round_to}.", f"Set round_to to 1 or {PUBLISHED_TILE}.")
        return [published_count(width, fraction, step.round_to) for width, fraction in zip(widths, fractions, strict=True)]
    if rule == "uniform":
        return [nearest_tile(width, fraction, step.round_to) for width, fraction in zip(widths, fractions, strict=True)]
    return tiled_counts(widths, fractions, step.round_to)


def _demand_met(space: Space, widths: list[int], counts: list[int], remove: float) -> None:
    got = 1 - sum(counts) / sum(widths)
    if abs(got - remove) > FEASIBLE:
        width = max(widths)
        steps = ", ".join(f"{1 - left / width:.3f}" for left in range(width, 0, -1))
        raise TrimlineError(
            f"Removing {remove:.0%} of the {space}s is not possible with {width} per block; the nearest is {got:.0%}.",
            f"Ask for one of {steps}.",
        )


def _given_counts(budget: Budget, space: Space, widths: list[int]) -> tuple[int, ...]:
    keep = budget.keep
    assert keep is not None
    # One number is for the blocks that have any: others are of a kind without units, or lost them all before.
    counts = tuple(keep if width else 0 for width in widths) if isinstance(keep, int) else keep
    if len(counts) != len(widths):
        raise TrimlineError(f"The budget keeps sizes for {len(counts)} blocks; the model has {len(widths)}.", "Give one number per block.")
    for number, (count, width) in enumerate(zip(counts, widths, strict=True)):
        if count > width:
            raise TrimlineError(f"Block {number} cannot keep {count} units of {space}: it has {width}.", f"Keep at most {width}.")
    return tuple(counts)
