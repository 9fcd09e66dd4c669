"""One round of removing units: measure, score, allocate, compensate."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.architecture.families.family import check_stream
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.measurements import Kept, Measured, Scores, scores_of
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.allocation.allocate import Allocation, allocate, blocks_to_keep, channels_to_keep, keep_best
from pipeline.prune.allocation.pooled import pooled_allocation
from pipeline.prune.allocation.targeted import Aim, by_own_rule, by_scores
from pipeline.prune.compensation.readers import compensate
from pipeline.prune.methods import ScoringMethod, method_named
from pipeline.prune.methods.method import PoolingMethod
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneStep
from pipeline.prune.scoring import _score, measure, needs_of
from pipeline.prune.steps import is_sequential, pools, rule_of

Counts = dict[Space, dict[int, int]]  # per space, original block number to how many units stay


def remove_units(
    model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, method: ScoringMethod, events: Events, kept: Kept | None = None
) -> tuple[Step, Scores]:
    """One round over all blocks; ``model`` ends smaller. ``kept`` is what ``measure`` gave for this model, if it is known."""
    if Space.RESIDUAL in step.spaces:
        check_stream(model.geometry.family)
    sequential = is_sequential(step)
    scores, measured = scores_of(kept) if kept else measure(model, windows, step, events, compensated=not sequential)
    importance = {block: seen.mean_distance for block, seen in measured.items()} if needs_of(step).distance else {}
    facts: dict[str, Any] = {"tokens": windows.numel()}
    if importance:
        facts["block importance"] = {str(block): distance for block, distance in importance.items()}
    counts, decided = _counts(model, step, scores, importance)
    facts |= decided
    units = _layers(model, counts, scores) | _residual(model, counts, scores)
    if sequential and set(step.spaces) & set(SUBLAYERS):
        measured.clear()
        units |= _remove_sequentially(model, windows, step, scores, counts, events)
    else:
        units |= _remove_at_once(model, step, scores, measured, counts, events)
    title = f"{step.method} on {', '.join(space.value for space in step.spaces)}"
    return Step(title, step.model_dump(mode="json", exclude_none=True), units, facts), scores


def _counts(model: ShrinkingModel, step: PruneStep, scores: Scores, importance: dict[int, float]) -> tuple[Counts, dict[str, Any]]:
    """How many units stay, and the numbers behind it."""
    if step.target:
        return _targeted_counts(model, step, scores, importance)
    if step.pooled:
        method = method_named(step.method)
        rule = method.pooled_counts if isinstance(method, PoolingMethod) else pooled_allocation
        return rule(model.current, step, scores)
    counts: Counts = {}
    facts: dict[str, Any] = {}
    for space, by_block in scores.items():
        if space is Space.LAYER:
            kept = blocks_to_keep(step.budget[space], model.current)
            best = keep_best(torch.cat(list(by_block.values())), kept).tolist()
            counts[space] = {block: int(place in best) for place, block in enumerate(by_block)}
            facts[space.value] = {"kept": kept}
        elif space is Space.RESIDUAL:
            channels = channels_to_keep(step.budget[space], model.current, step.round_to)
            counts[space] = dict.fromkeys(by_block, channels)
            facts[space.value] = {"kept": channels}
        else:
            counts[space], facts[space.value] = _units_to_keep(model, step, space, by_block, importance)
    return counts, facts


def _targeted_counts(model: ShrinkingModel, step: PruneStep, scores: Scores, importance: dict[int, float]) -> tuple[Counts, dict[str, Any]]:
    """Sizes that meet a target: the best under the step's scores, or those of the method's own rule."""
    assert step.target is not None
    method, aim = method_named(step.method), Aim(step.target, model.current, model.geometry, model.consumer)
    assert isinstance(method, ScoringMethod)
    additive = method.allocation == "raw"
    if step.allocation == "optimal":
        return by_scores(aim, step, scores, additive)
    return by_own_rule(aim, step, pools(step), lambda stated: _counts(model, stated, scores, importance))


def _units_to_keep(
    model: ShrinkingModel, step: PruneStep, space: Space, scores: dict[int, torch.Tensor], importance: dict[int, float]
) -> tuple[dict[int, int], dict[str, Any]]:
    rule = rule_of(step)
    distances = torch.tensor(list(importance.values())) if importance else None
    allocation = allocate(step, space, rule, model.current, list(scores.values()), distances)
    if space is Space.FFN and rule == "uniform" and step.rounding == "tile" and step.budget[space].remove is not None:
        _demand_tiles_met(step, [block.ffn for block in model.current.blocks], allocation)
    facts = {"allocation": rule, "kept": list(allocation.counts)} | allocation.facts
    return dict(zip(scores, allocation.counts, strict=True)), facts


def _demand_tiles_met(step: PruneStep, widths: list[int], allocation: Allocation) -> None:
    """Widths within half a tile per block of what was asked for: a block never goes below one tile."""
    asked, got = allocation.facts["removed fraction of units asked for"], 1 - sum(allocation.counts) / sum(widths)
    if abs(asked - got) * sum(widths) > step.round_to / 2 * len(widths) + 1e-6:
        raise TrimlineError(
            f"Removing {asked:.1%} of the ffn channels is not possible in tiles of {step.round_to}; the nearest is {got:.1%}.",
            f"Ask for {got:.3f}, or give a smaller round_to.",
        )


def _layers(model: ShrinkingModel, counts: Counts, scores: Scores) -> dict[str, tuple[int, ...]]:
    """Drops whole blocks."""
    if Space.LAYER not in scores:
        return {}
    blocks = tuple(block for block, count in counts[Space.LAYER].items() if count)
    model.keep_blocks(blocks)
    return {Space.LAYER.value: blocks}


def _residual(model: ShrinkingModel, counts: Counts, scores: Scores) -> dict[str, tuple[int, ...]]:
    """Drops channels of the residual stream: those whose scores, added up over the blocks, are the lowest."""
    if Space.RESIDUAL not in scores:
        return {}
    total = torch.stack(list(scores[Space.RESIDUAL].values())).sum(dim=0)
    left = model.selection.residual or range(model.geometry.hidden)
    kept = tuple(left[channel] for channel in keep_best(total, next(iter(counts[Space.RESIDUAL].values()))).tolist())
    model.keep_residual(kept)
    return {Space.RESIDUAL.value: kept}


def _remove_at_once(
    model: ShrinkingModel, step: PruneStep, scores: Scores, measured: Measured, counts: Counts, events: Events
) -> dict[str, tuple[int, ...]]:
    """Every block on what the model as it was gave."""
    spaces = [space for space in scores if space in SUBLAYERS]
    kept: dict[str, tuple[int, ...]] = {}
    solving = step.compensation == "least_squares"
    with events.progress("solving for the remaining weights" if solving else "removing", len(spaces) * len(measured)) as advance:
        for space in spaces:
            for block in sorted(scores[space]):
                kept |= _keep(model, step, space, block, scores[space][block], counts[space][block], measured[block])
                advance(1)
    return kept


def _remove_sequentially(
    model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, measured: Scores, counts: Counts, events: Events
) -> dict[str, tuple[int, ...]]:
    """Every block on what the pruned blocks before it give; its statistics are dropped when it is done.

    Scores that come from gradients stay those of the model as it was: gradients flow from the last block to the first.
    """
    method = method_named(step.method)
    assert isinstance(method, ScoringMethod)
    spaces = [space for space in step.spaces if space in SUBLAYERS]
    kept: dict[str, tuple[int, ...]] = {}
    for block, seen in sweep(model.model, model.geometry.family, windows, needs_of(step), events, sequential=True):
        if block not in model.selection.blocks:
            continue
        scores = measured
        if not method.needs(step).gradients:
            scores = {space: {} for space in spaces}
            _score(model, method, step, block, seen, scores)
        for space in spaces:
            kept |= _keep(model, step, space, block, scores[space][block], counts[space][block], seen)
    return kept


def _keep(
    model: ShrinkingModel, step: PruneStep, space: Space, block: int, score: torch.Tensor, count: int, seen: BlockStatistics
) -> dict[str, tuple[int, ...]]:
    """Keeps a block's best units, updating the reader where the step asks for it."""
    sublayer = SUBLAYERS[space]
    left = model.selection.units(sublayer)[block]
    units = tuple(left[i] for i in keep_best(score, count).tolist())
    if len(units) < len(left):
        compensate(model, sublayer, block, units, seen, step)
    model.keep_units(sublayer, block, units)
    return {f"{space}.{block}": units}
