"""The prune stage: the recipe's steps, one after the other, each on the model that the one before left; the result is a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Space
from pipeline.calibrate.measurements import Kept, Scores
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan, Step
from pipeline.prune.allocation.targeted import Aim, demand_possible
from pipeline.prune.allocation.targets import Consumer, measures
from pipeline.prune.methods import ScoringMethod, StepMethod, WeightMethod, method_named
from pipeline.prune.methods.method import MeasuringMethod
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.shots import shots_of
from pipeline.prune.steps import check_steps
from pipeline.prune.units import remove_units
from pipeline.prune.weights import sparsify
from pipeline.sources.model import checkpoint_folder


def prune(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    out: Path,
    events: Events,
    measured: Path | None = None,
    consumer: Consumer = Consumer(),  # noqa: B008 - frozen
) -> None:
    """Stage: writes a plan.

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids.
        recipe: the steps.
        options: device, dtype and threads of the measuring passes.
        out: empty folder.
        events: progress.
        measured: what ``pipeline.prune.measure`` wrote for this model and recipe; without, everything is measured here.
        consumer: what will run the result; targets are stated for it.

    Raises:
        TrimlineError: the method cannot score the space, the budget or target cannot be met, the text is too short.
    """
    check_steps(recipe)
    check_targets(recipe, Checkpoint(checkpoint_folder(source)).geometry, consumer)
    model, windows = opened(source, texts, recipe, options, consumer)
    with closing(model):
        make_plan(model, windows, recipe, events, Kept.read(measured) if measured else None).write(out)


def check_targets(recipe: PruneSlice, dense: Geometry, consumer: Consumer) -> None:
    """Whether what the targets speak of is known, and whether any sizes of the dense model meet the first step's.

    Raises:
        TrimlineError: there is no latency table, it knows no such workload, bytes are not known, or too much is asked for.
    """
    for place, step in enumerate(recipe.steps):
        if step.target:
            measures(step.target, dense, consumer)
            if place == 0:
                demand_possible(Aim(step.target, dense, dense, consumer), step)


def make_plan(model: ShrinkingModel, windows: torch.Tensor, recipe: PruneSlice, events: Events, kept: Kept | None = None) -> Plan:
    """Runs every step on a model in memory; ``model`` ends as the pruned one.

    Args:
        model: the dense model.
        windows: calibration tokens, shape (N, S).
        recipe: the steps.
        events: progress.
        kept: what the first shot of the first step measures, if it is known.
    """
    *_, last = plans(model, windows, recipe, events, kept)
    return last()


def plans(
    model: ShrinkingModel, windows: torch.Tensor, recipe: PruneSlice, events: Events, kept: Kept | None = None
) -> Iterator[Callable[[], Plan]]:
    """What makes the plan as it stands after every shot of every step, valid until the next is asked for; arguments as of ``make_plan``."""
    steps: list[Step] = []
    scores: dict[str, torch.Tensor] = {}
    for number, step in enumerate(recipe.steps):
        for done, per_space in run_step(model, windows, step, events, None if number else kept):
            for space, by_block in per_space.items():
                scores |= {f"step{len(steps)}.{space}.{block}": score for block, score in by_block.items()}
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


def run_step(
    model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events, kept: Kept | None = None
) -> Iterator[tuple[Step, Scores]]:
    """One step of the recipe, shot by shot; ``kept`` as for ``make_plan``."""
    method = method_named(step.method)
    if isinstance(method, MeasuringMethod):
        yield from method.run(model, windows, step, events, kept)
        return
    scored = isinstance(method, ScoringMethod) and Space.WEIGHT not in step.spaces
    if isinstance(method, StepMethod) and not scored:
        yield from method.run(model, windows, step, events)
        return
    for shot in shots_of(step, model):
        if Space.WEIGHT in step.spaces:
            assert isinstance(method, WeightMethod)
            yield sparsify(model, windows, shot, method, events), {}
        else:
            assert isinstance(method, ScoringMethod)
            yield remove_units(model, windows, shot, method, events, kept)
            kept = None
