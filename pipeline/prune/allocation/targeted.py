"""A target into sizes: by an integer program over scores, or by a method's own rule at the least removal that meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import SUBLAYERS, Counts, IndexSet, Space
from pipeline.calibrate.measurements import Scores
from pipeline.common.errors import TrimlineError
from pipeline.plan.selection import Selection
from pipeline.prune.allocation.program import Choice, least_loss
from pipeline.prune.allocation.targets import BoundedCost, bounds, demand_uncut, infeasible, measures
from pipeline.prune.consumer import Consumer
from pipeline.prune.recipe import Budget, Pool, PruneStep, Target
from pipeline.prune.step import Resolved, ResolvedStep

BISECTIONS = 30  # halvings of the fraction that goes; a unit of the largest models is a larger part
Found = tuple[Counts, dict[str, Any]]


@dataclass(frozen=True)
class Aim:
    """A target, stated for a model.

    Attributes:
        target: what is wanted.
        selection: what is left of the dense model.
        dense: the model that shares are of.
        consumer: what will run the result.
    """

    target: Target
    selection: Selection
    dense: Geometry
    consumer: Consumer

    @property
    def current(self) -> Geometry:
        """Sizes of the model as it is."""
        return self.selection.geometry(self.dense)

    def after(self, counts: Counts) -> Geometry:
        """Sizes of the model that keeps ``counts``; a sublayer that they do not name stays as it is."""
        shapes = dict(zip(self.selection.blocks, self.current.blocks, strict=True))
        for (space, block), count in counts.items():
            if space is Space.LAYER:
                shapes = shapes if count else {number: shape for number, shape in shapes.items() if number != block}
            else:
                shapes[block] = shapes[block].with_units(SUBLAYERS[space], count)
        return self.current.with_blocks(tuple(shapes.values()))

    @property
    def measures(self) -> dict[str, BoundedCost]:
        """What is bounded."""
        return measures(self.target, self.dense, self.consumer)

    @property
    def bounds(self) -> dict[str, float]:
        """The most of each."""
        return bounds(self.target, self.dense, self.consumer)

    def is_met(self, geometry: Geometry) -> bool:
        """Whether a model meets every bound."""
        limits = self.bounds
        return all(measure.whole(geometry) <= limits[name] for name, measure in self.measures.items())

    def facts(self, result: Geometry) -> dict[str, Any]:
        """What was asked for and what the result is predicted to be, per measure; for the plan."""
        limits = self.bounds
        return {name: {"at most": limits[name], "found": measure.whole(result)} for name, measure in self.measures.items()}


def size_grid(units: int, tile: int, empty: bool) -> list[int]:
    """Sizes that a sublayer of ``units`` may keep: what it has, then multiples of the tile, descending to one tile or to nothing."""
    return [units, *(size for size in range(tile * ((units - 1) // tile), -1 if empty else tile - 1, -tile) if size < units)]


def best_sizes(aim: Aim, losses: Mapping[IndexSet, Mapping[int, float]]) -> Counts:
    """The sizes that lose least of all that meet the target.

    Args:
        aim: what is to be met.
        losses: what keeping so many units loses.

    Raises:
        TrimlineError: even the smallest sizes do not meet it; says what they would.
    """
    demand_uncut(aim.target, aim.current, aim.dense)
    found, limits = aim.measures, aim.bounds
    choices = {
        units: Choice(
            tuple(by_size),
            tuple(by_size.values()),
            {name: [measure.sublayer(SUBLAYERS[units.space], size) for size in by_size] for name, measure in found.items()},
        )
        for units, by_size in losses.items()
    }
    held = aim.after(dict.fromkeys(losses, 0))
    sizes = least_loss(choices, {name: limits[name] - measure.whole(held) for name, measure in found.items()})
    if sizes is None:
        smallest = aim.after({units: min(by_size) for units, by_size in losses.items()})
        raise infeasible(aim.target, smallest, aim.dense, aim.consumer, "any sizes that the step allows")
    return sizes


def by_scores(aim: Aim, step: PruneStep, scores: Scores, additive: bool) -> Found:
    """How many units every block keeps, so that the importance of what goes is least.

    Args:
        aim: what is to be met.
        step: for the tile.
        scores: per space and original block, over the units that are left; comparable with one another.
        additive: scores are parts of one loss and add up; otherwise a unit counts for its score, from the lowest of all,
            times its parameters: with one bound on parameters that is the pooled rule, which sorts units by score.
    """
    lowest = min(float(score.min()) for by_block in scores.values() for score in by_block.values() if len(score))
    losses = {}
    for space, by_block in scores.items():
        weight = 1.0 if additive else float(aim.dense.unit_parameters(SUBLAYERS[space]))
        for block, score in by_block.items():
            if len(score):
                values = (score.double() if additive else score.double() - lowest) * weight
                losses[IndexSet(space, block)] = _losses(values, size_grid(len(score), step.tile(space), step.allow_empty))
    sizes = best_sizes(aim, losses)
    counts = {units: sizes.get(units, 0) for units in (IndexSet(space, block) for space in scores for block in scores[space])}
    return counts, {"allocation": "optimal", "target": aim.facts(aim.after(sizes))}


def by_own_rule(aim: Aim, step: Resolved, count: Callable[[Resolved], Found]) -> Found:
    """What a method's own rule keeps at the least removal that meets the target.

    Args:
        aim: what is to be met.
        step: with the target.
        count: what the rule keeps under a step with a budget.

    Raises:
        TrimlineError: however much goes, the rule does not meet it; says what it would.
    """
    demand_uncut(aim.target, aim.current, aim.dense)
    search = _Search(aim, step, count)
    if step.spaces == (Space.LAYER,):
        found = search.least(lambda keep: {"budget": {Space.LAYER: Budget(keep=keep)}}, range(len(aim.current.blocks), 0, -1))
    elif step.pools:
        found = search.bisected(lambda remove: {"pooled": Pool(spaces=step.spaces, remove=remove, allow_empty=step.recipe.allow_empty)})
    else:
        found = search.nearly_even()
    if found is None:
        raise infeasible(aim.target, search.smallest(), aim.dense, aim.consumer, f"the rule of {step.recipe.method}")
    (counts, facts), stated = found
    return counts, facts | {"stated as": stated, "target": aim.facts(aim.after(counts))}


def layers_within(aim: Aim) -> int:
    """How many of blocks that are alike can stay.

    Raises:
        TrimlineError: not even one.
    """
    blocks = aim.current.blocks
    for keep in range(len(blocks), 0, -1):
        if aim.is_met(aim.current.with_blocks(blocks[:keep])):
            return keep
    raise infeasible(aim.target, aim.current.with_blocks(blocks[:1]), aim.dense, aim.consumer, "whole blocks")


def demand_possible(aim: Aim, step: ResolvedStep) -> None:
    """Whether the smallest sizes that a step allows meet its target, whatever the scores will be.

    Raises:
        TrimlineError: they do not; says what they would.
    """
    blocks = aim.current.blocks
    if step.spaces == (Space.LAYER,):
        smallest = aim.current.with_blocks(blocks[:1])
    else:
        places = [
            (IndexSet(space, number), block) for space in step.spaces for number, block in zip(aim.selection.blocks, blocks, strict=True)
        ]
        smallest = aim.after({units: _least(block.units(SUBLAYERS[units.space]), units.space, step.recipe) for units, block in places})
    if not aim.is_met(smallest):
        raise infeasible(aim.target, smallest, aim.dense, aim.consumer, "any sizes that the step allows")


def _least(units: int, space: Space, step: PruneStep) -> int:
    """The smallest size that a step allows."""
    return min(size_grid(units, step.tile(space), step.allow_empty))


class _Search(Generic[Resolved]):
    """Tries budgets under a rule until the least that meets the target is found."""

    def __init__(self, aim: Aim, step: Resolved, count: Callable[[Resolved], Found]) -> None:
        self._aim, self._step, self._count = aim, step, count
        self._missed: list[Geometry] = []

    def least(self, state: Callable[[Any], dict[str, Any]], amounts: Any) -> tuple[Found, dict[str, Any]] | None:
        """The first of ``amounts`` that meets the target."""
        return next((found for amount in amounts if (found := self._tried(state(amount)))), None)

    def bisected(self, state: Callable[[float], dict[str, Any]]) -> tuple[Found, dict[str, Any]] | None:
        """The least fraction that meets the target.

        A rule refuses fractions that would leave less than it may: these are too much, and what is less is tried.
        """
        if found := self._tried(state(0.0)):
            return found
        low, high, best, refused = 0.0, 1.0, None, None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            try:
                found = self._tried(state(middle))
            except TrimlineError as error:
                high, refused = middle, error
                continue
            low, high, best = (low, middle, found) if found else (middle, high, best)
        if best is None and low == 0.0 and refused is not None:  # it refuses whatever is asked
            raise refused
        return best

    def nearly_even(self) -> tuple[Found, dict[str, Any]] | None:
        """One fraction of every space; KV groups are few, so of their possible fractions the nearest to the FFN's is taken."""
        blocks = self._aim.current.blocks
        spaces = [space for space in self._step.spaces if any(block.units(SUBLAYERS[space]) for block in blocks)]
        if Space.KV_GROUP not in spaces:
            return self.bisected(lambda remove: {"budget": {Space.FFN: Budget(remove=remove)}})
        most = self._aim.current.most(Sublayer.ATTENTION)
        groups = [1 - left / most for left in range(most, 0, -1)]
        if Space.FFN not in spaces:
            return self.least(lambda remove: {"budget": {Space.KV_GROUP: Budget(remove=remove)}}, groups)

        def state(of_groups: float, remove: float) -> dict[str, Any]:
            return {"budget": {Space.FFN: Budget(remove=remove), Space.KV_GROUP: Budget(remove=of_groups)}}

        found = [(g, best) for g in groups if (best := self.bisected(lambda remove, g=g: state(g, remove)))]  # type: ignore[misc]
        unlike = [abs(g - best[1]["budget"]["ffn"]["remove"]) for g, best in found]
        return found[unlike.index(min(unlike))][1] if found else None

    def smallest(self) -> Geometry:
        """Of what was tried in vain, the model that is nearest to the target: by the measure that it misses by most."""
        limits, found = self._aim.bounds, self._aim.measures
        return min(self._missed, key=lambda shape: max(measure.whole(shape) / limits[name] for name, measure in found.items()))

    def _tried(self, stated: dict[str, Any]) -> tuple[Found, dict[str, Any]] | None:
        step = self._step.stating(target=None, **stated)
        found = self._count(step)
        shape = self._aim.after(found[0])
        if self._aim.is_met(shape):
            return found, step.recipe.model_dump(mode="json", include=set(stated), exclude_none=True)
        self._missed.append(shape)
        return None


def _losses(values: torch.Tensor, sizes: list[int]) -> dict[int, float]:
    """Σ of the values that go when only the best ``size`` stay, per size."""
    gone = torch.cat([values.new_zeros(1), values.sort().values.cumsum(0)]).tolist()
    return {size: gone[len(values) - size] for size in sizes}
