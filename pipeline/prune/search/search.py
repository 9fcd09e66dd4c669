"""From the sizes that a budget comes to, others that cost no more and take the model less far from what it predicted.

The search is EvoPress' (``pipeline.prune.allocation.evolution``); what it chooses from is any method's order of units. Search for
Efficient LLMs (arXiv 2409.17372) and Týr-the-Pruner (arXiv 2503.09657) search for sizes likewise. Ours are what it starts from, the
method's own allocation; the readers of a choice, which least squares makes for every size; and the bounds.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family, Sublayer
from pipeline.architecture.spaces import SUBLAYERS, Counts, IndexSet, Space
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.prune.allocation.evolution import Evolved, Levels, Mutation, Places, Sieve, Spent, evolve
from pipeline.prune.allocation.pooled import kept_facts, unit_sizes
from pipeline.prune.allocation.targeted import Aim, size_grid
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneStep, Search
from pipeline.prune.search.divergence import SizeJudge, rounds_on
from pipeline.prune.search.kept import Kept
from pipeline.prune.search.library import Library, statistics_for
from pipeline.prune.step import ResolvedStep

Orders = Mapping[IndexSet, tuple[int, ...]]


@dataclass(frozen=True)
class SizeSearch:
    """What is searched for.

    Attributes:
        step: with ``search``.
        model: with all units still there.
        windows: calibration tokens, shape (N, S).
        order: of every sublayer its units, from the one that stays longest.
        compensation: what makes up for what goes.
        reference: the model whose predictions are aimed at; None takes the model as it is.
    """

    step: ResolvedStep
    model: ShrinkingModel
    windows: torch.Tensor
    order: Orders
    compensation: str
    reference: nn.Module | None = None


def check_search(family: Family, spaces: Collection[Space]) -> None:
    """Whether choices of a family's blocks can be judged: a block that goes is judged as one whose two readers write nothing.

    Raises:
        TrimlineError: other parts of its blocks add to the stream too.
    """
    if Space.LAYER in spaces and any(part.adds for part in family.carried):
        raise TrimlineError(
            f"The search cannot choose among whole blocks of {family.model_type}: more than attention and a dense FFN adds to their stream.",
            "Leave search out.",
        )


def searched(subject: SizeSearch, counts: Counts, measured: Mapping[int, BlockStatistics], events: Events) -> tuple[Counts, dict[str, Any]]:
    """How many units every sublayer keeps, and the numbers behind it.

    Args:
        subject: what is searched for.
        counts: where the search starts; its cost is the budget, of a target the bounds are.
        measured: statistics that are known already.
        events: progress.

    Raises:
        TrimlineError: the model predicts what is no number with the sizes that the search starts from.
    """
    step, model = subject.step, subject.model
    search = step.recipe.search
    assert search is not None
    order = {among: units for among, units in subject.order.items() if units and not _is_pinned(among, model)}
    start, levels = levels_from(step, model, {among: counts[among] for among in order})
    compensation = subject.compensation if search.readers == "refitted" else "none"
    seen = statistics_for(model, subject.windows, order, compensation, measured, events)
    library = Library(model, order, compensation, step.recipe.damping, seen)
    rounds = rounds_on(model, subject.reference or model.model, subject.windows, search.tokens)
    divergence = SizeJudge(model, library, tuple(order), levels, rounds)
    kept = Kept(
        step.work, _depends(search, levels, order, compensation, subject, [float(aim.float().square().mean()) for aim in rounds[-1].aims])
    )
    judge = _Judge(divergence, kept, search)
    found: list[Evolved] = []
    with divergence.live(), events.progress("searching sizes", search.evaluations) as advance:
        judge.advance = advance
        for best in evolve(start, levels, judge, Mutation(search.switches, search.levels),
                           Sieve(search.offspring, search.survivors), random.Random(search.seed)):  # fmt: skip
            found.append(best)
            divergence.parent = best.places
            if best.loss is not None and not math.isfinite(best.loss):
                raise TrimlineError("The sizes that the search starts from predict what is no number.", "Remove less.")
    chosen = counts | dict(zip(order, levels.chosen(found[-1].places), strict=True))
    events.note(f"searched {len(judge.asked):,} choices: {found[0].loss:.4g} to {found[-1].loss:.4g} nats per token from the dense model")
    facts = {
        "evaluations": len(judge.asked),
        "generations": found[-1].generation,
        "tokens": sum(rounds[round_].tokens for _, round_ in judge.asked),
        "divergence": [best.loss for best in found],
        "from": kept_facts(counts),
        "kept": kept_facts(chosen),
    }
    return chosen, facts


@dataclass
class _Judge:
    """Losses within the budget; what is kept costs no pass, and counts all the same, so that a search that goes on ends alike."""

    divergence: SizeJudge
    kept: Kept
    search: Search
    asked: dict[tuple[Places, int], None] = field(default_factory=dict)
    seconds: float = 0.0
    advance: Callable[[int], None] = lambda _: None

    def __call__(self, places: Places, round_: int) -> float:
        judged = (places, round_)
        known = self.kept.find(judged)
        if judged in self.asked and known:
            return known[0]
        if len(self.asked) >= self.search.evaluations or (self.search.seconds and self.seconds >= self.search.seconds):
            raise Spent
        if known is None:
            started = time.monotonic()
            loss = self.divergence(places, round_)
            known = (loss, time.monotonic() - started)
            self.kept.add(judged, *known)
        self.asked[judged] = None
        self.seconds += known[1]
        self.advance(1)
        return known[0]


def levels_from(step: ResolvedStep, model: ShrinkingModel, counts: Counts) -> tuple[Places, Levels]:
    """The sizes that may be chosen, under what ``counts`` cost or the target's bounds; and the places of ``counts``."""
    sizes = {among: _sizes(among, count, model, step.recipe) for among, count in counts.items()}
    costs, limits = {}, {}
    for name, (cost, limit) in _measures(step, model, counts).items():
        costs[name] = tuple(tuple(cost(among, size) for size in of) for among, of in sizes.items())
        limits[name] = limit
    start = tuple(of.index(counts[among]) for among, of in sizes.items())
    return start, Levels(tuple(sizes.values()), costs, limits)


def _sizes(among: IndexSet, count: int, model: ShrinkingModel, recipe: PruneStep) -> tuple[int, ...]:
    if among.space is Space.LAYER:
        return (1, 0)
    grid = size_grid(len(model.selection.units(SUBLAYERS[among.space])[among.block]), recipe.tile(among.space), recipe.allow_empty)
    return tuple(sorted({*grid, count}, reverse=True))


Cost = Callable[[IndexSet, int], float]


def _measures(step: ResolvedStep, model: ShrinkingModel, counts: Counts) -> dict[str, tuple[Cost, float]]:
    """What choices cost, and the most that they may."""
    recipe = step.recipe
    if recipe.target:
        return _bounded(Aim(recipe.target, model.selection, model.geometry, step.consumer), counts)
    if recipe.pooled:
        units = unit_sizes(model.current, recipe.pooled)
        costs: dict[str, Cost] = {recipe.pooled.of: lambda among, size: units[among.space] * size}
    else:
        costs = {space.value: lambda among, size, space=space: float(size * (among.space is space)) for space in recipe.budget}  # type: ignore[misc]
    return {name: (cost, sum(cost(among, count) for among, count in counts.items())) for name, cost in costs.items()}


def _bounded(aim: Aim, counts: Counts) -> dict[str, tuple[Cost, float]]:
    """The target's bounds, less what no choice changes."""
    held, shapes = aim.after(dict.fromkeys(counts, 0)), dict(zip(aim.selection.blocks, aim.current.blocks, strict=True))
    found: dict[str, tuple[Cost, float]] = {}
    for name, measure in aim.measures.items():

        def cost(among: IndexSet, size: int, measure: Any = measure) -> float:
            if among.space is Space.LAYER:
                return float(size * sum(measure.sublayer(kind, shapes[among.block].units(kind)) for kind in Sublayer))
            return float(measure.sublayer(SUBLAYERS[among.space], size))

        found[name] = (cost, aim.bounds[name] - measure.whole(held))
    return found


def _is_pinned(among: IndexSet, model: ShrinkingModel) -> bool:
    return among.space is Space.LAYER and among.block < model.geometry.pinned


def _depends(search: Search, levels: Levels, order: Orders, compensation: str, subject: SizeSearch, aims: list[float]) -> dict[str, Any]:
    """All that losses depend on; ``aims`` stands for the weights."""
    return {
        "tokens": list(search.tokens),
        "sizes": [list(sizes) for sizes in levels.sizes],
        "order": [[str(among.space), among.block, *units] for among, units in order.items()],
        "compensation": [compensation, subject.step.recipe.damping],
        "windows": subject.windows.tolist(),
        "aims": [f"{aim:.5e}" for aim in aims],
    }
