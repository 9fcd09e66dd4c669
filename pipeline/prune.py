"""The prune stage: the recipe's steps, one after the other, each on the model that the one before left; the result is a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from pipeline.allocation.targeted import Aim, demand_possible
from pipeline.allocation.targets import Consumer, measures, part_of
from pipeline.calibrate.windows import check_windows, draw_windows
from pipeline.checkpoint import Checkpoint
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.geometry import Geometry
from pipeline.kept import Kept
from pipeline.loading import load_tokenizer
from pipeline.masks import Pattern
from pipeline.methods import ScoringMethod, StepMethod, WeightMethod, method_named
from pipeline.methods.method import CheckingMethod, MeasuringMethod, Scores
from pipeline.options import RunOptions
from pipeline.paging import open_model
from pipeline.plan import Plan, Step
from pipeline.recipe import Budget, Pool, PruneSlice, PruneStep, Space
from pipeline.shrinking import ShrinkingModel
from pipeline.sources.model import checkpoint_folder
from pipeline.sparsify import sparsify
from pipeline.structured import remove_units


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
        measured: what ``pipeline.measure`` wrote for this model and recipe; without, everything is measured here.
        consumer: what will run the result; targets are stated for it.

    Raises:
        TrimlineError: the method cannot score the space, the budget or target cannot be met, the text is too short.
    """
    check_steps(recipe)
    check_targets(recipe, Checkpoint(checkpoint_folder(source)).geometry, consumer)
    model, windows = opened(source, texts, recipe, options, consumer)
    with closing(model):
        make_plan(model, windows, recipe, events, Kept.read(measured) if measured else None).write(out)


def opened(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    consumer: Consumer = Consumer(),  # noqa: B008 - frozen
) -> tuple[ShrinkingModel, torch.Tensor]:
    """The dense model in the dtype that measures, and the calibration tokens, shape (N, S); arguments as of ``prune``."""
    options.apply()
    folder = checkpoint_folder(source)
    checkpoint = Checkpoint(folder)
    check_steps(recipe)
    text = "" if recipe.calibration.token_ids is not None else (texts / "calibration.txt").read_text(encoding="utf-8")
    windows = draw_windows(load_tokenizer(folder), text, recipe.calibration)
    check_windows(windows, checkpoint.geometry)
    dtype = options.resolved_dtype()
    model, paging = open_model(folder, options, dtype)
    return ShrinkingModel(model, checkpoint, paging, consumer), windows


def check_steps(recipe: PruneSlice) -> None:
    """What can be known about the steps before anything is measured.

    Raises:
        TrimlineError: an unknown method, a space that the method does not score, an option that it does not have, or
            units that go after single weights went.
    """
    sparse = False
    for step in recipe.steps:
        _check_step(step)
        if sparse and Space.WEIGHT not in step.spaces:
            raise TrimlineError("A step removes units after single weights went, and its updates would fill the zeros.",
                                "Make the model smaller first, then sparse.")  # fmt: skip
        sparse = sparse or Space.WEIGHT in step.spaces


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


def _check_step(step: PruneStep) -> None:
    method = method_named(step.method)
    beyond = [space.value for space in step.spaces if space not in method.spaces]
    if beyond:
        raise TrimlineError(
            f"The method {step.method} does not score {beyond[0]}; it scores {', '.join(sorted(method.spaces))}.",
            "Use another method for that space, in a step of its own.",
        )
    try:
        method.options.model_validate(step.options)
    except ValidationError as error:
        first = error.errors()[0]
        place, valid = ".".join(map(str, first["loc"])), ", ".join(sorted(method.options.model_fields)) or "none"
        raise TrimlineError(
            f"The option {place!r} of the method {step.method} is wrong: {first['msg'].removeprefix('Value error, ')}.",
            f"Its options are: {valid}; docs/recipe.md says what they take.",
        ) from None
    if Space.WEIGHT in step.spaces:
        _check_weights(step)
    if isinstance(method, CheckingMethod):
        method.check(step)


def _check_weights(step: PruneStep) -> None:
    fraction, budget = Pattern.parse(step.pattern).fraction, step.budget.get(Space.WEIGHT)
    if budget is None or budget.remove is None:
        raise TrimlineError("The budget of space weight names no fraction.", "Write weight: {remove: 0.5}.")
    if fraction is not None and abs(budget.remove - fraction) > 1e-9:
        raise TrimlineError(f"Pattern {step.pattern} removes {fraction:g} of the weights, and the budget says {budget.remove:g}.",
                            f"Write weight: {{remove: {fraction:g}}}.")  # fmt: skip


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
