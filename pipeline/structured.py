"""One round of removing units: measure, score, allocate, compensate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from pipeline.allocation.allocate import Allocation, allocate, blocks_to_keep, channels_to_keep, keep_best
from pipeline.allocation.pooled import pooled_allocation
from pipeline.allocation.targeted import Aim, by_own_rule, by_scores
from pipeline.calibrate.gradients import BlockGradients, gradient_sweep
from pipeline.calibrate.statistics import BlockStatistics, Needs
from pipeline.calibrate.sweep import sweep
from pipeline.compensation.readers import compensate
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.families import Sublayer
from pipeline.kept import Kept, Measured, scores_of
from pipeline.methods import ScoringMethod, method_named
from pipeline.methods.method import BlockView, PoolingMethod, Scores
from pipeline.plan import Step
from pipeline.rebuild.profiles import check_stream
from pipeline.recipe import Budget, Pool, PruneStep, Space
from pipeline.shrinking import ShrinkingModel

SUBLAYERS = {Space.FFN: Sublayer.FFN, Space.KV_GROUP: Sublayer.ATTENTION}
Counts = dict[Space, dict[int, int]]  # per space, original block number to how many units stay


class GivenStatistics(Protocol):
    """What the sweeps would yield, in their order."""

    def forward(self) -> Iterator[tuple[int, BlockStatistics]]:
        """As ``sweep``."""

    def backward(self) -> Iterator[tuple[int, BlockGradients]]:
        """As ``gradient_sweep``."""


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


def is_sequential(step: PruneStep) -> bool:
    """Whether each block is cut on what the pruned blocks before it give."""
    return getattr(method_named(step.method), "sequential", False) if step.sequential is None else step.sequential


def measure(
    model: ShrinkingModel,
    windows: torch.Tensor,
    step: PruneStep,
    events: Events,
    compensated: bool = True,
    given: GivenStatistics | None = None,
) -> tuple[Scores, Measured]:
    """Scores over the units that are left, per space and original block, and the statistics themselves.

    Args:
        compensated: whether the statistics are to hold what the step's compensation reads.
        given: statistics of this model on these windows, where they are known; without, it is swept.
    """
    method, needs = method_named(step.method), needs_of(step, compensated)
    assert isinstance(method, ScoringMethod)
    family, measured = model.geometry.family, {}
    if needs.forward or not needs.gradients:
        seen_forward = given.forward() if given else sweep(model.model, family, windows, needs, events)
        measured = {block: seen for block, seen in seen_forward if block in model.selection.blocks}
    else:
        measured = {block: BlockStatistics(windows.numel(), len(windows)) for block in model.selection.blocks}
    scores: Scores = {space: {} for space in step.spaces}
    if needs.gradients:
        seen_backward = (
            given.backward() if given else gradient_sweep(model.model, family, windows, needs.gradients, events, model.waiting_bytes)
        )
        for block, gradients in seen_backward:
            if block in measured:
                measured[block].gradients = gradients
                _score(model, method, step, block, measured[block], scores)
                measured[block].gradients = None
            del gradients  # as large as the weights or larger
        return {space: dict(sorted(by_block.items())) for space, by_block in scores.items()}, measured
    for block, seen in measured.items():
        _score(model, method, step, block, seen, scores)
    return scores, measured


def _score(model: ShrinkingModel, method: ScoringMethod, step: PruneStep, block: int, seen: BlockStatistics, scores: Scores) -> None:
    left = {sublayer: model.selection.units(sublayer)[block] for sublayer in Sublayer}
    view = BlockView(seen, partial(model.weight, block), model.geometry, block, partial(model.bias, block), left)
    for space, by_block in scores.items():
        if space in SUBLAYERS and not left[SUBLAYERS[space]]:  # the whole sublayer went before
            by_block[block] = torch.zeros(0)
            continue
        score = method.score(view, space, step).float().cpu()
        _demand_finite(score, block, model.model)
        by_block[block] = score[list(_units_left(model, space, left))]


def _units_left(model: ShrinkingModel, space: Space, left: Mapping[Sublayer, tuple[int, ...]]) -> Sequence[int]:
    """Numbers of a space's units that are still there in a block."""
    if space is Space.RESIDUAL:
        return model.selection.residual or range(model.geometry.hidden)
    return left[SUBLAYERS[space]] if space in SUBLAYERS else (0,)


def _demand_finite(score: torch.Tensor, block: int, model: torch.nn.Module) -> None:
    if not torch.isfinite(score).all():
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise TrimlineError(
            f"The scores of block {block} are not finite: its activations overflow in {dtype}.", "Measure in float32: --dtype float32."
        )


def needs_of(step: PruneStep, compensated: bool = True) -> Needs:
    """What the step's method, allocation and (if it is measured now) compensation read."""
    method = method_named(step.method)
    assert isinstance(method, ScoringMethod)
    needs = method.needs(step)
    if rule_of(step) == "cfsp":
        needs |= Needs(distance=True)
    if compensated and step.compensation == "least_squares":
        needs |= Needs(gram=frozenset(SUBLAYERS[space].point for space in step.spaces if space in SUBLAYERS))
    if compensated and step.compensation == "bias":
        needs |= Needs(squares=frozenset(SUBLAYERS[space].point for space in step.spaces if space in SUBLAYERS))
    return needs


def rule_of(step: PruneStep) -> str:
    """How the step spreads a budget over blocks: as the recipe says, or as its method does."""
    method = method_named(step.method)
    return step.allocation or (method.allocation if isinstance(method, ScoringMethod) else "global")


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


def pools(step: PruneStep) -> bool:
    """Whether a step with a target shares one budget out over all its spaces by scores, as ``pooled`` does."""
    method = method_named(step.method)
    if not isinstance(method, ScoringMethod):
        return True
    return step.allocation == "optimal" or (step.allocation is None and (method.allocation == "raw" or isinstance(method, PoolingMethod)))


def as_budget(step: PruneStep) -> PruneStep:
    """A step with a target as one with a budget that leaves shapes of the same kind: what may be uneven, before anything is known."""
    if step.target is None:
        return step
    if Space.LAYER not in step.spaces and pools(step):
        stated: dict[str, Any] = {"pooled": Pool(spaces=step.spaces, remove=0.5, allow_empty=step.allow_empty)}
    else:
        stated = {"budget": {space: Budget(remove=0.5) for space in step.spaces}}
    return step.model_copy(update={"target": None} | stated)


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
