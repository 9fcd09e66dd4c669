"""One round of removing units: measure, score, allocate, compensate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.names import units_name
from pipeline.architecture.obstacles import check_stream
from pipeline.architecture.spaces import IN_BLOCKS, SUBLAYERS, Counts, IndexSet, Space
from pipeline.calibrate.measurements import Measured, Measurements, Scores, scores_of
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.allocation.allocate import Allocation, allocate, blocks_to_keep, channels_to_keep, keep_best
from pipeline.prune.allocation.experts import best_of_groups
from pipeline.prune.allocation.pooled import pooled_allocation
from pipeline.prune.allocation.targeted import Aim, by_own_rule, by_scores
from pipeline.prune.compensation.linear_map import MAPS, WEIGHTED, check_map, merge_maps
from pipeline.prune.compensation.readers import compensate
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.scoring import ScoredStep, score_block, scored, units_left
from pipeline.prune.search.search import SizeSearch, searched
from pipeline.prune.shots import shots_of
from pipeline.prune.step import ResolvedStep


class PoolRule(Protocol):
    """How a pooled budget is shared out; a method may have its own."""

    def pooled_counts(self, geometry: Geometry, step: ResolvedStep, scores: Scores) -> tuple[Counts, dict[str, Any]]:
        """How many units of each space every block keeps, and the numbers behind it."""

    def is_even(self, step: ResolvedStep) -> bool:
        """Whether blocks that are alike stay alike."""


class PooledByScore:
    """The rule of methods that have none of their own."""

    def pooled_counts(self, geometry: Geometry, step: ResolvedStep, scores: Scores) -> tuple[Counts, dict[str, Any]]:
        """See ``pooled_allocation``."""
        return pooled_allocation(geometry, step.recipe, scores)

    def is_even(self, step: ResolvedStep) -> bool:
        """Scores differ from block to block."""
        return False


BY_SCORE = PooledByScore()


@dataclass(frozen=True, kw_only=True)
class UnitStep(ScoredStep):
    """Units go by scores, shot by shot.

    Attributes:
        pooling: of a pooled budget.
    """

    pooling: PoolRule = BY_SCORE

    @property
    def is_even(self) -> bool:
        return self.pooling.is_even(self) and self.recipe.allocation != "optimal" and self.recipe.search is None

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        for shot in shots_of(self, model):
            yield remove_units(model, windows, shot, events, measurements)
            measurements = None


def remove_units(
    model: ShrinkingModel, windows: torch.Tensor, step: UnitStep, events: Events, measurements: Measurements | None = None
) -> tuple[Step, Scores]:
    """One round over all blocks; ``model`` ends smaller. ``measurements`` are what ``step.measure`` gave for this model, if it is known."""
    if Space.RESIDUAL in step.spaces:
        check_stream(model.geometry.family, model.geometry.within)
    scores, measured = scores_of(measurements) if measurements else scored(model, windows, step, events)
    importance = {block: seen.mean_distance for block, seen in measured.items()} if step.measures_importance else {}
    usage = {block: seen.usage.cpu() for block, seen in measured.items() if seen.usage is not None}
    facts: dict[str, Any] = {"tokens": windows.numel() if step.reads_text else 0}
    if importance:
        facts["block importance"] = {str(block): distance for block, distance in importance.items()}
    counts, decided = _counts(model, step, scores, importance)
    facts |= decided
    if step.recipe.search:
        subject = SizeSearch(step, model, windows, _orders(model, scores), step.recipe.compensation)
        counts, facts["search"] = searched(subject, counts, measured, events)
        facts |= _reached(model, step, counts)
    if step.recipe.compensation in MAPS:
        check_map(model.geometry.family)
        kept = {block for (_, block), stays in counts.items() if stays}
        facts["maps"] = merge_maps(model, windows, kept, step.recipe.compensation == WEIGHTED, step.recipe.damping, events)
    units = _layers(model, counts, scores) | _residual(model, counts, scores)
    if step.sequential and step.reads_text and set(step.spaces) & set(IN_BLOCKS):
        measured.clear()
        units |= _remove_sequentially(model, windows, step, scores, counts, events)
    else:
        units |= _remove_at_once(model, step, scores, measured, counts, events)
    title = f"{step.recipe.method} on {', '.join(space.value for space in step.spaces)}"
    return Step(title, step.record, units, facts, usage), scores


def _counts(model: ShrinkingModel, step: UnitStep, scores: Scores, importance: dict[int, float]) -> tuple[Counts, dict[str, Any]]:
    """How many units stay, and the numbers behind it."""
    if step.recipe.target:
        return _targeted_counts(model, step, scores, importance)
    if step.recipe.pooled:
        return step.pooling.pooled_counts(model.current, step, scores)
    counts: Counts = {}
    facts: dict[str, Any] = {}
    for space, by_block in scores.items():
        if space is Space.LAYER:
            kept = blocks_to_keep(step.recipe.budget[space], model.current)
            best = keep_best(torch.cat(_unpinned(by_block, model.current, model.geometry.pinned)), kept).tolist()
            counts |= {IndexSet(space, block): int(place in best) for place, block in enumerate(by_block)}
            facts[space.value] = {"kept": kept}
        elif space is Space.RESIDUAL:
            channels = channels_to_keep(step.recipe.budget[space], model.current, step.recipe.round_to)
            counts |= {IndexSet(space, block): channels for block in by_block}
            facts[space.value] = {"kept": channels}
        else:
            kept_units, facts[space.value] = _units_to_keep(model, step, space, by_block, importance)
            counts |= kept_units
    return counts, facts


def _orders(model: ShrinkingModel, scores: Scores) -> dict[IndexSet, tuple[int, ...]]:
    """Of every sublayer, or block, its units from the one that stays longest."""
    found = {}
    for space, by_block in scores.items():
        for block, score in by_block.items():
            left = units_left(model, block, space)
            found[IndexSet(space, block)] = tuple(left[i] for i in score.argsort(descending=True, stable=True).tolist())
    return found


def _reached(model: ShrinkingModel, step: UnitStep, counts: Counts) -> dict[str, Any]:
    """What a target comes to with other sizes than the rule's."""
    if step.recipe.target is None:
        return {}
    aim = Aim(step.recipe.target, model.selection, model.geometry, step.consumer)
    return {"target": aim.facts(aim.after(counts))}


def _unpinned(scores: dict[int, torch.Tensor], current: Geometry, pinned: int) -> list[torch.Tensor]:
    """Scores of blocks, in order, those that cannot go above all others: the first ``pinned``, and one that keeps something of every token."""
    keeping = [block for block, shape in zip(scores, current.blocks, strict=True) if current.keeps_tokens(shape)]
    best = max(keeping, key=lambda block: float(scores[block]), default=None)
    return [torch.full_like(found, torch.inf) if block < pinned or block == best else found for block, found in scores.items()]


def _targeted_counts(model: ShrinkingModel, step: UnitStep, scores: Scores, importance: dict[int, float]) -> tuple[Counts, dict[str, Any]]:
    """Sizes that meet a target: the best under the step's scores, or those of the method's own rule."""
    assert step.recipe.target is not None
    aim = Aim(step.recipe.target, model.selection, model.geometry, step.consumer)
    if step.recipe.allocation == "optimal":
        return by_scores(aim, step.recipe, scores, additive=step.method.allocation == "raw")
    return by_own_rule(aim, step, lambda stated: _counts(model, stated, scores, importance))


def _units_to_keep(
    model: ShrinkingModel, step: UnitStep, space: Space, scores: dict[int, torch.Tensor], importance: dict[int, float]
) -> tuple[Counts, dict[str, Any]]:
    if not any(map(len, scores.values())):  # it went before, and a target is met in the other space
        return {IndexSet(space, block): 0 for block in scores}, {"kept": [0] * len(scores)}
    recipe, rule = step.recipe, step.rule
    distances = torch.tensor(list(importance.values())) if importance else None
    allocation = allocate(recipe, space, rule, model.current, list(scores.values()), distances)
    if space is Space.FFN and rule == "uniform" and recipe.rounding == "tile" and recipe.budget[space].remove is not None:
        _demand_tiles_met(recipe.round_to, [block.ffn for block in model.current.blocks], allocation)
    facts = {"allocation": rule, "kept": list(allocation.counts)} | allocation.facts
    return {IndexSet(space, block): count for block, count in zip(scores, allocation.counts, strict=True)}, facts


def _demand_tiles_met(tile: int, widths: list[int], allocation: Allocation) -> None:
    """Widths within half a tile per block of what was asked for: a block never goes below one tile."""
    asked, got = allocation.facts["removed fraction of units asked for"], 1 - sum(allocation.counts) / sum(widths)
    if abs(asked - got) * sum(widths) > tile / 2 * len(widths) + 1e-6:
        raise TrimlineError(
            f"Removing {asked:.1%} of the ffn channels is not possible in tiles of {tile}; the nearest is {got:.1%}.",
            f"Ask for {got:.3f}, or give a smaller round_to.",
        )


def _layers(model: ShrinkingModel, counts: Counts, scores: Scores) -> dict[str, tuple[int, ...]]:
    """Drops whole blocks."""
    if Space.LAYER not in scores:
        return {}
    blocks = tuple(block for block in scores[Space.LAYER] if counts[IndexSet(Space.LAYER, block)])
    model.keep_blocks(blocks)
    return {units_name(Space.LAYER): blocks}


def _residual(model: ShrinkingModel, counts: Counts, scores: Scores) -> dict[str, tuple[int, ...]]:
    """Drops channels of the residual stream: those whose scores, added up over the blocks, are the lowest."""
    if Space.RESIDUAL not in scores:
        return {}
    by_block = scores[Space.RESIDUAL]
    count = counts[IndexSet(Space.RESIDUAL, next(iter(by_block)))]
    left = model.selection.residual or range(model.geometry.hidden)
    kept = tuple(left[channel] for channel in keep_best(torch.stack(list(by_block.values())).sum(dim=0), count).tolist())
    model.keep_residual(kept)
    return {units_name(Space.RESIDUAL): kept}


def _remove_at_once(
    model: ShrinkingModel, step: UnitStep, scores: Scores, measured: Measured, counts: Counts, events: Events
) -> dict[str, tuple[int, ...]]:
    """Every block on what the model as it was gave."""
    spaces = [space for space in scores if space in IN_BLOCKS]
    kept: dict[str, tuple[int, ...]] = {}
    solving = step.recipe.compensation == "least_squares"
    with events.progress("solving for the remaining weights" if solving else "removing", len(spaces) * len(measured)) as advance:
        for space in spaces:
            for block in sorted(scores[space]):
                kept |= _keep(model, step, IndexSet(space, block), scores[space][block], counts, measured[block])
                advance(1)
    return kept


def _remove_sequentially(
    model: ShrinkingModel, windows: torch.Tensor, step: UnitStep, measured: Scores, counts: Counts, events: Events
) -> dict[str, tuple[int, ...]]:
    """Every block on what the pruned blocks before it give; its statistics are dropped when it is done.

    Scores that come from gradients stay those of the model as it was: gradients flow from the last block to the first.
    """
    spaces = [space for space in step.spaces if space in IN_BLOCKS]
    kept: dict[str, tuple[int, ...]] = {}
    for block, seen in sweep(model.model, model.geometry.family, windows, step.needs(), events, sequential=True):
        if block not in model.selection.blocks:
            continue
        scores = measured
        if not step.method.needs(step).gradients:
            scores = {space: {} for space in spaces}
            score_block(model, step, block, seen, scores)
        for space in spaces:
            kept |= _keep(model, step, IndexSet(space, block), scores[space][block], counts, seen)
    return kept


def _keep(
    model: ShrinkingModel, step: UnitStep, among: IndexSet, score: torch.Tensor, counts: Counts, seen: BlockStatistics
) -> dict[str, tuple[int, ...]]:
    """Keeps the best of a block's units, updating the reader where the step asks for it."""
    if among.space is Space.EXPERT:
        return _keep_experts(model, among, score, counts[among])
    sublayer, block = SUBLAYERS[among.space], among.block
    left = model.selection.units(sublayer)[block]
    units = tuple(left[i] for i in keep_best(score, counts[among]).tolist())
    if len(units) < len(left):
        compensate(model, sublayer, block, units, seen, step.recipe)
    model.keep_units(sublayer, block, units)
    return {units_name(*among): units}


def _keep_experts(model: ShrinkingModel, among: IndexSet, score: torch.Tensor, count: int) -> dict[str, tuple[int, ...]]:
    """Keeps the best of a block's experts, as many of every group that its router chooses in."""
    left, groups = model.selection.experts_of(among.block), model.geometry.routing.groups
    if not left:
        return {units_name(*among): ()}
    each = model.geometry.blocks[among.block].experts // groups
    units = tuple(left[place] for place in best_of_groups(score, [expert // each for expert in left], count).tolist())
    model.keep_experts(among.block, units)
    return {units_name(*among): units}
