"""A step in equal parts, each stated for the model as it is when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import IN_BLOCKS, Space, units_in, with_units_in
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.targets import part_of
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import Budget, Pool, PruneStep
from pipeline.prune.step import Resolved


def shots_of(step: Resolved, model: ShrinkingModel) -> Iterator[Resolved]:
    """The step in equal parts, each stated for the model as it is when its turn comes.

    Single weights keep their zeros from shot to shot, so there each part states the whole fraction so far.
    """
    recipe = step.recipe
    if recipe.shots > 1 and any(budget.keep is not None for budget in recipe.budget.values()):
        raise TrimlineError("A budget of several shots says which sizes to keep.", "Say what to remove instead, or use one shot.")
    whole = model.current
    for shot in range(1, recipe.shots + 1):
        left = partial(_part, recipe, shot, whole, model.current)
        budget = {
            space: old if old.remove is None else old.model_copy(update={"remove": left(space, old)})
            for space, old in recipe.budget.items()
        }
        pooled = recipe.pooled and recipe.pooled.model_copy(update={"remove": left(None, recipe.pooled)})
        target = recipe.target and part_of(recipe.target, shot / recipe.shots, whole, model.geometry, step.consumer)
        yield step.stating(budget=budget, pooled=pooled, target=target, shots=1)


def _part(step: PruneStep, shot: int, whole: Geometry, now: Geometry, space: Space | None, budget: Budget | Pool) -> float:
    """What a shot removes, as a fraction of the model as it is: what tiles left over from the shots before is made up for."""
    assert budget.remove is not None
    gone = budget.remove * shot / step.shots
    if space is Space.WEIGHT:
        return gone
    before, after, left = (_size(geometry, space, budget) for geometry in (whole, _shrunk_in(space, whole, now), now))
    return max(0.0, (gone * before - (before - after)) / left) if left else 0.0


def _shrunk_in(space: Space | None, whole: Geometry, now: Geometry) -> Geometry:
    """The model where only one space lost units: with several budgets, each counts what its own space lost."""
    if space is Space.RESIDUAL:
        return replace(whole, hidden=now.hidden) if len(whole.blocks) == len(now.blocks) else now
    if space not in IN_BLOCKS or len(whole.blocks) != len(now.blocks):
        return now
    pairs = zip(whole.blocks, now.blocks, strict=True)
    return whole.with_blocks(tuple(with_units_in(old, space, units_in(new, space)) for old, new in pairs))


def _size(geometry: Geometry, space: Space | None, budget: Budget | Pool) -> int:
    """A model in the budget's measure."""
    if budget.of == "parameters":
        return geometry.decoder_parameters()
    if budget.of == "flops":
        return geometry.decoder_flops(budget.context)
    if space is Space.LAYER:
        return len(geometry.blocks)
    if space is Space.RESIDUAL:
        return geometry.hidden
    assert space is not None  # a pool is of parameters or FLOPs
    return sum(units_in(block, space) for block in geometry.blocks)
