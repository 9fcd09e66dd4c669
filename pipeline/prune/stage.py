"""The prune stage: the recipe's steps, one after the other, each on the model that the one before left; the result is a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.names import step_scores_name, usage_name
from pipeline.architecture.obstacles import check_beside, check_experts, check_ffn, check_heads, check_stream
from pipeline.architecture.spaces import IndexSet, Space
from pipeline.calibrate.measurements import Measurements
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan, Step
from pipeline.plan.selection import Selection
from pipeline.prune.allocation.experts import check_experts_budget
from pipeline.prune.allocation.targeted import Aim, demand_possible
from pipeline.prune.allocation.targets import measures
from pipeline.prune.compensation.linear_map import MAPS, check_map
from pipeline.prune.consumer import Consumer
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.search.search import check_search
from pipeline.prune.step import ResolvedStep
from pipeline.prune.steps import ANYWHERE, resolve_steps
from pipeline.prune.units import UnitStep
from pipeline.sources.model import checkpoint_folder


def prune(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    out: Path,
    events: Events,
    measured: Path | None = None,
    consumer: Consumer = ANYWHERE,
    work: Path | None = None,
) -> None:
    """Stage: writes a plan.

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids, or no step measures anything.
        recipe: the steps.
        options: device, dtype and threads of the measuring passes.
        out: empty folder.
        events: progress.
        measured: what ``pipeline.prune.measure`` wrote for this model and recipe; without, everything is measured here.
        consumer: what will run the result; targets are stated for it.
        work: folder that a search which was stopped goes on from; without, it starts afresh.

    Raises:
        TrimlineError: the method cannot score the space, the model cannot lose units of it, the budget or target cannot be met,
            the text is too short.
    """
    steps = tuple(replace(step, work=work) for step in resolve_steps(recipe, consumer))
    dense = Checkpoint(checkpoint_folder(source)).geometry
    check_spaces(steps, dense)
    check_targets(steps, dense)
    model, windows = opened(source, texts, recipe.calibration, options, any(step.reads_text for step in steps))
    with closing(model):
        *_, last = plans(model, windows, steps, events, Measurements.read(measured) if measured else None)
        last().write(out)


def check_spaces(steps: Sequence[ResolvedStep], dense: Geometry) -> None:
    """Whether what the steps are about can go from this model.

    Raises:
        TrimlineError: a norm stands against it, or what holds the model.
    """
    left = dense
    for step in steps:
        if Space.KV_GROUP in step.spaces:
            check_heads(dense.family)
            check_beside(dense.family, step.recipe.allow_empty)
        if step.recipe.compensation in MAPS:
            check_map(dense.family)
        if step.recipe.search:
            check_search(dense.family, step.spaces)
        if Space.FFN in step.spaces:
            check_ffn(dense.family)
        if dense.family.mixture is not None:
            _check_of_mixture(step, dense)
        if Space.EXPERT in step.spaces:
            left = _without_experts(step, left)
        if Space.RESIDUAL in step.spaces:
            check_stream(dense.family, dense.within)


def _check_of_mixture(step: ResolvedStep, dense: Geometry) -> None:
    """Whether a step on something else than experts knows what a mixture is.

    Raises:
        TrimlineError: it prunes single weights, of which nearly all are experts', or its method does whole steps itself.
    """
    if step.recipe.target:
        raise TrimlineError(
            f"Targets of mixtures are not met yet, and {dense.family.model_type} is one.", "State a budget, such as expert: {remove: 0.25}."
        )
    if Space.WEIGHT in step.spaces or not isinstance(step, UnitStep):
        what = "prunes the weights of projections" if Space.WEIGHT in step.spaces else "walks through blocks of projections"
        raise TrimlineError(f"{step.recipe.method} {what}, and most of a {dense.family.model_type} are experts, which it does not know.",
                            "Remove experts, or KV groups or FFN channels by a method that scores units, such as cfsp_extended.")  # fmt: skip


def _without_experts(step: ResolvedStep, left: Geometry) -> Geometry:
    """The model without the experts that a step removes.

    Raises:
        TrimlineError: it has none, or the step cannot leave as many as it says.
    """
    check_experts(left.family)
    kept = check_experts_budget(step.recipe, step.rule, left)
    return left.with_blocks(tuple(replace(block, experts=min(kept, block.experts)) for block in left.blocks))


def check_targets(steps: Sequence[ResolvedStep], dense: Geometry) -> None:
    """Whether what the targets speak of is known, and whether any sizes of the dense model meet the first step's.

    Raises:
        TrimlineError: there is no latency table, it knows no such workload, bytes are not known, or too much is asked for.
    """
    for place, step in enumerate(steps):
        if target := step.recipe.target:
            measures(target, dense, step.consumer)
            if place == 0:
                demand_possible(Aim(target, Selection.everything(dense), dense, step.consumer), step)


def make_plan(model: ShrinkingModel, windows: torch.Tensor, recipe: PruneSlice, events: Events, consumer: Consumer = ANYWHERE) -> Plan:
    """Runs every step of a recipe on a model in memory; ``model`` ends as the pruned one.

    Args:
        model: the dense model.
        windows: calibration tokens, shape (N, S).
        recipe: the steps.
        events: progress.
        consumer: what will run the result; targets are stated for it.
    """
    *_, last = plans(model, windows, resolve_steps(recipe, consumer), events)
    return last()


def plans(
    model: ShrinkingModel, windows: torch.Tensor, resolved: Sequence[ResolvedStep], events: Events, measurements: Measurements | None = None
) -> Iterator[Callable[[], Plan]]:
    """What makes the plan as it stands after every shot of every step, valid until the next is asked for.

    Args:
        model, windows, events: as for ``make_plan``.
        resolved: the steps.
        measurements: what the first shot of the first step measures, if it is known.
    """
    steps: list[Step] = []
    scores: dict[str, torch.Tensor] = {}
    for number, step in enumerate(resolved):
        step.demand_units(model.selection)
        for done, per_space in step.run(model, windows, events, None if number else measurements):
            for space, by_block in per_space.items():
                scores |= {step_scores_name(len(steps), IndexSet(space, block)): score for block, score in by_block.items()}
            scores |= {usage_name(len(steps), block): chosen for block, chosen in done.usage.items()}
            steps.append(done)
            yield partial(_plan, model, steps, scores)


def _plan(model: ShrinkingModel, steps: Sequence[Step], scores: Mapping[str, torch.Tensor]) -> Plan:
    return Plan(
        family=model.geometry.family,
        selection=model.selection,
        steps=tuple(steps),
        updates=model.updates(),
        scores=dict(scores),
        sparse=dict(model.sparse),
        biases=tuple(sorted(model.biases)),
    )
