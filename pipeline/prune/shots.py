"""A step in equal parts, each stated for the model as it is when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.targets import part_of
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import Budget, Pool, PruneStep


def shots_of(step: PruneStep, model: ShrinkingModel) -> Iterator[PruneStep]:
    """The step in equal parts, each stated for the model as it is when its turn comes.

    Single weights keep their zeros from shot to shot, so there each part states the whole fraction so far.
    """
    if step.shots > 1 and any(budget.keep is not None for budget in step.budget.values()):
        raise TrimlineError("A budget of several shots says which sizes to keep.", "Say what to remove instead, or use one shot.")
    whole = model.current
    for shot in range(1, step.shots + 1):
        left = partial(_part, step, shot, whole, model.current)
        budget = {
            space: old if old.remove is None else old.model_copy(update={"remove": left(space, old)}) for space, old in step.budget.items()
        }
        pooled = step.pooled and step.pooled.model_copy(update={"remove": left(None, step.pooled)})
        aim = step.target and part_of(step.target, shot / step.shots, whole, model.geometry, model.consumer)
        yield step.model_copy(update={"budget": budget, "pooled": pooled, "target": aim, "shots": 1})


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
    if space not in (Space.FFN, Space.KV_GROUP) or len(whole.blocks) != len(now.blocks):
        return now
    ffn = space is Space.FFN
    pairs = zip(whole.blocks, now.blocks, strict=True)
    return whole.with_blocks(tuple(replace(old, ffn=new.ffn) if ffn else replace(old, kv_groups=new.kv_groups) for old, new in pairs))


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
    return sum(block.ffn if space is Space.FFN else block.kv_groups for block in geometry.blocks)
