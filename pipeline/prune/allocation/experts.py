"""How many routed experts stay: the same number in every block, and in every group that routers choose in."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import demand_choice, least_experts
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.budget import removed_fraction
from pipeline.prune.recipe import Budget, PruneStep

FEASIBLE = 0.05  # as of other coarse units: a budget counts as met within this fraction of the experts
ONE_COUNT = "its config and every program that loads it know one number of experts for all blocks"


def experts_to_keep(budget: Budget, geometry: Geometry) -> int:
    """How many experts of every block stay.

    Args:
        budget: of space expert.
        geometry: the model as it is now.

    Raises:
        TrimlineError: the budget is of FLOPs or of unlike counts, it cannot be met, or routers cannot choose among so few.
    """
    there = max(block.experts for block in geometry.blocks)
    kept = _nearest(budget, geometry, there) if budget.keep is None else _stated(budget.keep)
    if kept > there:
        raise TrimlineError(f"The budget keeps {kept} experts of each block, which has {there}.", f"Keep at most {there}.")
    demand_choice(geometry, kept)
    return kept


def check_experts_budget(step: PruneStep, rule: str, geometry: Geometry) -> int:
    """``experts_to_keep`` of a step, before anything is measured.

    Raises:
        TrimlineError: as there, or the step has a rule under which counts differ, or compensates what experts write.
    """
    if rule != "uniform":
        raise TrimlineError(
            f"The allocation '{rule}' gives every block its own number of experts, and {ONE_COUNT}.", "Use allocation 'uniform'."
        )
    if step.compensation != "none":
        raise TrimlineError(
            f"Compensation '{step.compensation}' updates a projection that reads the units, and experts have none.",
            "Leave compensation out of the step that removes experts.",
        )
    return experts_to_keep(step.budget[Space.EXPERT], geometry)


def best_of_groups(score: torch.Tensor, groups: Iterable[int], count: int) -> torch.Tensor:
    """Ascending places of the experts that stay: of every group as many, the highest scores; among equals the lower place.

    Args:
        score: per expert that is there, shape (E,).
        groups: the group of each.
        count: that stay in all.
    """
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    each = count // len(members)
    best: list[int] = []
    for places in members.values():
        order = score[places].argsort(descending=True, stable=True)[:each]
        best += [places[at] for at in order.tolist()]
    return torch.tensor(sorted(best), dtype=torch.long)


def _stated(keep: int | tuple[int, ...]) -> int:
    if isinstance(keep, int):
        return keep
    if len(set(keep)) > 1:
        raise TrimlineError(f"The budget keeps unlike numbers of experts, and {ONE_COUNT}.", "Give one number for all blocks.")
    return keep[0]


def _nearest(budget: Budget, geometry: Geometry, there: int) -> int:
    if budget.of == "flops":
        raise TrimlineError(
            f"Removing experts does not change what a token costs: {geometry.routing.chosen} are chosen for every one, however many there are.",
            "State the budget of units or of parameters.",
        )
    wanted, step = 1 - removed_fraction(budget, Space.EXPERT, geometry), geometry.routing.groups
    kept = max(step, step * round(wanted * there / step))
    if abs(kept / there - wanted) > FEASIBLE + 1e-9:
        possible = range(there, least_experts(geometry) - 1, -step)
        raise TrimlineError(
            f"Removing {1 - wanted:.0%} of the experts is not possible with {there} in each block; the nearest is {1 - kept / there:.1%}.",
            f"Ask for one of {', '.join(f'{1 - count / there:.3f}' for count in possible)}.",
        )
    return kept
