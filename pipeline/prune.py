"""The prune stage: for each step, measure, score, allocate, compensate; the result is a plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.allocation.allocate import FEASIBLE, Allocation, allocate, keep_best
from pipeline.allocation.budget import removed_fraction
from pipeline.calibrate.statistics import BlockStatistics, Needs
from pipeline.calibrate.sweep import sweep
from pipeline.calibrate.windows import check_windows, draw_windows
from pipeline.checkpoint import Checkpoint
from pipeline.compensation.least_squares import least_squares
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.families import Axis, Sublayer
from pipeline.geometry import Geometry
from pipeline.loading import load_model, load_tokenizer
from pipeline.methods import BlockView, method_named
from pipeline.options import RunOptions
from pipeline.plan import Plan, Step
from pipeline.recipe import Budget, PruneSlice, PruneStep, Space
from pipeline.shrinking import ShrinkingModel
from pipeline.sources.model import checkpoint_folder

SUBLAYERS = {Space.FFN: Sublayer.FFN, Space.KV_GROUP: Sublayer.ATTENTION}
Scores = dict[int, torch.Tensor]  # original block number to a score per unit that is left


def prune(source: Path, texts: Path, recipe: PruneSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes a plan.

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids.
        recipe: the steps.
        options: device, dtype and threads of the measuring passes.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the method cannot score the space, the budget cannot be met, the text is too short.
    """
    options.apply()
    folder = checkpoint_folder(source)
    checkpoint = Checkpoint(folder)
    check_steps(recipe)
    text = "" if recipe.calibration.token_ids is not None else (texts / "calibration.txt").read_text(encoding="utf-8")
    windows = draw_windows(load_tokenizer(folder), text, recipe.calibration)
    check_windows(windows, checkpoint.geometry)
    dtype = options.resolved_dtype()
    model = load_model(folder, dtype=dtype, device=options.device, trust_remote_code=options.trust_remote_code)
    make_plan(ShrinkingModel(model, checkpoint), windows, recipe, events).write(out)


def check_steps(recipe: PruneSlice) -> None:
    """What can be known about the steps before anything is measured.

    Raises:
        TrimlineError: an unknown method, or a space that the method does not score.
    """
    for step in recipe.steps:
        method = method_named(step.method)
        beyond = [space.value for space in step.budget if space not in method.spaces]
        if beyond:
            raise TrimlineError(
                f"The method {step.method} does not score {beyond[0]}; it scores {', '.join(sorted(method.spaces))}.",
                "Use another method for that space, in a step of its own.",
            )


def make_plan(model: ShrinkingModel, windows: torch.Tensor, recipe: PruneSlice, events: Events) -> Plan:
    """Runs every step on a model in memory; ``model`` ends as the pruned one.

    Args:
        model: the dense model.
        windows: calibration tokens, shape (N, S).
        recipe: the steps.
        events: progress.
    """
    steps: list[Step] = []
    scores: dict[str, torch.Tensor] = {}
    for number, step in enumerate(recipe.steps):
        done, per_space = run_step(model, windows, step, events)
        steps.append(done)
        for space, by_block in per_space.items():
            scores |= {f"step{number}.{space}.{block}": score for block, score in by_block.items()}
    return Plan(model.geometry.family, model.selection, tuple(steps), model.updates(), scores)


def run_step(model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events) -> tuple[Step, dict[Space, Scores]]:
    """One round of measure, score, allocate, compensate."""
    scores, measured = measure(model, windows, step, events)
    importance = {block: seen.mean_distance for block, seen in measured.items()} if needs_of(step).distance else {}
    facts: dict[str, Any] = {"tokens": windows.numel()}
    if importance:
        facts["block importance"] = {str(block): distance for block, distance in importance.items()}
    kept: dict[str, tuple[int, ...]] = {}
    for space, by_block in scores.items():
        decided, facts[space.value] = _decide(model, step, space, by_block, importance)
        kept |= decided
        if space in SUBLAYERS:
            _remove_units(model, SUBLAYERS[space], step, measured, {b: decided[f"{space}.{b}"] for b in by_block}, events)
        else:
            model.keep_blocks(decided[space.value])
    title = f"{step.method} on {', '.join(space.value for space in step.budget)}"
    return Step(title, step.model_dump(mode="json", exclude_none=True), kept, facts), scores


def measure(
    model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events
) -> tuple[dict[Space, Scores], dict[int, BlockStatistics]]:
    """One sweep: scores over the units that are left, per space and original block, and the statistics themselves."""
    method, needs = method_named(step.method), needs_of(step)
    scores: dict[Space, Scores] = {space: {} for space in step.budget}
    measured: dict[int, BlockStatistics] = {}
    for block, seen in sweep(model.model, model.geometry.family, windows, needs, events):
        if block not in model.selection.blocks:
            continue
        measured[block] = seen
        view = BlockView(seen, partial(model.weight, block), model.geometry, block)
        for space, by_block in scores.items():
            score = method.score(view, space, step).cpu()
            _demand_finite(score, block, model.model)
            left = model.selection.units(SUBLAYERS[space])[block] if space in SUBLAYERS else (0,)
            by_block[block] = score[list(left)]
    return scores, measured


def _demand_finite(score: torch.Tensor, block: int, model: torch.nn.Module) -> None:
    if not torch.isfinite(score).all():
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise TrimlineError(
            f"The scores of block {block} are not finite: its activations overflow in {dtype}.", "Measure in float32: --dtype float32."
        )


def needs_of(step: PruneStep) -> Needs:
    """What the step's method, allocation and compensation read."""
    method = method_named(step.method)
    needs = method.needs(step)
    if rule_of(step) == "cfsp":
        needs |= Needs(distance=True)
    if step.compensation == "least_squares":
        needs |= Needs(gram=frozenset(SUBLAYERS[space] for space in step.budget if space in SUBLAYERS))
    return needs


def rule_of(step: PruneStep) -> str:
    """How the step spreads a budget over blocks: as the recipe says, or as its method does."""
    return step.allocation or method_named(step.method).allocation


def _decide(
    model: ShrinkingModel, step: PruneStep, space: Space, scores: Scores, importance: dict[int, float]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Space name to kept units in the original numbering, and the numbers behind it."""
    if space is Space.LAYER:
        count = _blocks_to_keep(step.budget[space], model.current)
        ranking = torch.cat(list(scores.values()))
        blocks = list(scores)
        return {space.value: tuple(blocks[i] for i in keep_best(ranking, count).tolist())}, {"kept": count}
    rule = rule_of(step)
    distance = torch.tensor(list(importance.values()))
    allocation = allocate(step, space, rule, model.current, list(scores.values()), distance)
    if space is Space.FFN and rule == "uniform" and step.rounding == "tile" and step.budget[space].remove is not None:
        _demand_tiles_met(step, [block.ffn for block in model.current.blocks], allocation)
    kept: dict[str, tuple[int, ...]] = {}
    for (block, score), count in zip(scores.items(), allocation.counts, strict=True):
        left = model.selection.units(SUBLAYERS[space])[block]
        kept[f"{space}.{block}"] = tuple(left[i] for i in keep_best(score, count).tolist())
    return kept, {"allocation": rule, "kept": list(allocation.counts)} | allocation.facts


def _demand_tiles_met(step: PruneStep, widths: list[int], allocation: Allocation) -> None:
    """Widths within half a tile per block of what was asked for: a block never goes below one tile."""
    asked, got = allocation.facts["removed fraction of units asked for"], 1 - sum(allocation.counts) / sum(widths)
    if abs(asked - got) * sum(widths) > step.round_to / 2 * len(widths) + 1e-6:
        raise TrimlineError(
            f"Removing {asked:.1%} of the ffn channels is not possible in tiles of {step.round_to}; the nearest is {got:.1%}.",
            f"Ask for {got:.3f}, or give a smaller round_to.",
        )


def _blocks_to_keep(budget: Budget, geometry: Geometry) -> int:
    """How many blocks stay.

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


def _remove_units(
    model: ShrinkingModel,
    sublayer: Sublayer,
    step: PruneStep,
    measured: dict[int, BlockStatistics],
    kept: dict[int, tuple[int, ...]],
    events: Events,
) -> None:
    """Updates the readers where the step asks for it, then removes the units."""
    compensate = step.compensation == "least_squares"
    with events.progress("solving for the remaining weights" if compensate else "removing", len(kept)) as advance:
        for block, units in kept.items():
            if compensate and 0 < len(units) < len(model.selection.units(sublayer)[block]):
                _compensate(model, sublayer, block, units, measured[block], step.damping)
            model.keep_units(sublayer, block, units)
            advance(1)


def _compensate(
    model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics, damping: float
) -> None:
    """Least squares over the columns that are left now, of which ``units`` stay."""
    reader = model.geometry.family.reader(sublayer)
    width = model.geometry.unit_width(Axis.FFN if sublayer is Sublayer.FFN else Axis.QUERY)
    left = _channels(model.selection.units(sublayer)[block], width)
    stay = _channels(units, width)
    statistics = seen.readers[sublayer]
    gram = statistics.gram()
    device = gram.device
    columns = left.to(device)
    biased = model.geometry.has_bias(reader)
    weight, shift = least_squares(
        model.weight(block, reader.name)[:, left].to(device),
        gram[columns][:, columns],
        torch.isin(left, stay).nonzero().flatten().to(device),
        damping,
        total=statistics.total[columns] if biased else None,
        tokens=seen.tokens,
    )
    model.update_reader(sublayer, block, stay, weight, shift)


def _channels(units: tuple[int, ...], width: int) -> torch.Tensor:
    """Unit numbers into channel numbers, shape (units × width,)."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()
