"""Which counts of experts a curve is drawn over, and which experts stay at each: by the scores that the plan kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.names import step_scores_named
from pipeline.architecture.obstacles import demand_choice
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan
from pipeline.prune.allocation.experts import best_of_groups

Kept = dict[int, tuple[int, ...]]  # by number of a block, the experts that stay


@dataclass(frozen=True)
class RuledOut:
    """A count that routers cannot choose among.

    Attributes:
        removed: the share that was asked for.
        kept: the count that it comes to.
        why: in a sentence.
    """

    removed: float
    kept: int
    why: str


def most_experts(geometry: Geometry) -> int:
    """How many experts a block has, of those that have any."""
    return max((block.experts for block in geometry.blocks), default=0)


def counts_for(removed: Sequence[float], geometry: Geometry) -> tuple[tuple[int, ...], tuple[RuledOut, ...]]:
    """Counts, each once and the largest first, and those that routers cannot choose among.

    Args:
        removed: shares of the experts, each rounded to the nearest count that has as many experts of every group. What comes to all of them
            is left out.
        geometry: of the dense model.
    """
    there, step = most_experts(geometry), geometry.routing.groups
    possible, ruled_out = set[int](), dict[int, RuledOut]()
    for share in removed:
        kept = step * round((1 - share) * there / step)
        try:
            demand_choice(geometry, kept)
        except TrimlineError as error:
            ruled_out.setdefault(kept, RuledOut(share, kept, error.problem))
        else:
            possible |= {kept} - {there}
    return tuple(sorted(possible, reverse=True)), tuple(ruled_out.values())


def first_scores(plan: Plan) -> dict[int, torch.Tensor]:
    """What the first step on experts scored them, by block, shape (E,): of all that the dense model has."""
    found: dict[int, dict[int, torch.Tensor]] = {}
    for name, score in plan.scores.items():
        if (named := step_scores_named(name)) is not None and named[1].space is Space.EXPERT:
            found.setdefault(named[0], {})[named[1].block] = score
    return dict(sorted(found[min(found)].items())) if found else {}


def best(scores: Mapping[int, torch.Tensor], count: int, geometry: Geometry) -> Kept:
    """The experts that stay in every block that has some, where so many do: as many of every group, the highest scores."""
    groups = geometry.routing.groups
    kept = {}
    for block, score in scores.items():
        if len(score):
            each = len(score) // groups
            kept[block] = tuple(best_of_groups(score, [expert // each for expert in range(len(score))], count).tolist())
    return kept
