"""Trimline's own method: FFN channels and KV groups, sized by what their loss costs, refitted towards the dense model.

What it takes from whom: the loss of removing units as a Kronecker-factored quadratic, estimated anew before every shot, from
LLM Surgeon (arXiv 2312.17244); unlike there units go one by one, each by what it costs once the reader of the others is
corrected (Optimal Brain Surgeon), so that correlated units are not counted twice and the error of every size is exact.
Units of both spaces compete for one budget as in FLAP (arXiv 2312.11983), here by error per parameter. The order of
blocks, on inputs that the pruned ones before give, is SparseGPT's (arXiv 2301.00774); that the target leans towards the
dense residual stream is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.names import curve_name, curve_named, units_name
from pipeline.architecture.spaces import SPACES, SUBLAYERS, Counts, IndexSet, channels
from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep, run_block
from pipeline.calibrate.measurements import Measurements, Scores
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.slices import Slice
from pipeline.plan.plan import Step
from pipeline.prune.allocation.marginal import Curve, most_removed, sizes_within
from pipeline.prune.allocation.pooled import unit_sizes, whole_of
from pipeline.prune.allocation.targeted import Aim, best_sizes, size_grid
from pipeline.prune.allocation.targets import part_of
from pipeline.prune.compensation.dense_streams import DenseStreams, dense_streams
from pipeline.prune.compensation.refit import refit
from pipeline.prune.kronecker.elimination import eliminate
from pipeline.prune.methods.method import options_of
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.search.search import SizeSearch, searched
from pipeline.prune.step import ResolvedStep


class TrimlineOptions(Slice):
    """Options of trimline."""

    correlation: float = Field(
        1.0, ge=0.0, le=1.0, description="share of the correlations between units that counts in their order and in the error curves"
    )
    relative: bool = Field(False, description="tokens count relative to the residual stream's size in the order and the error curves")
    share: float = Field(0.5, ge=0.0, le=1.0, description="of the lag behind the dense residual stream that a refitted reader makes up for")
    ridge: float | None = Field(
        None, gt=0.0, le=1e3, description="of the refit, in units of the Gram matrix's mean diagonal; by default each projection's own"
    )
    polish: Annotated[int, Field(ge=0, le=10)] = Field(0, description="sweeps that refit once more at the end, removing nothing")


@dataclass(frozen=True)
class Ranked:
    """One sublayer of one block: its units from the one to keep longest, what each cost as it went, the error of keeping only the first."""

    units: tuple[int, ...]
    scores: torch.Tensor
    curve: Curve


class Trimline:
    """Sizes by error curves, several shots, refitted towards the dense model."""

    name = "trimline"
    spaces = frozenset(SUBLAYERS)
    options = TrimlineOptions
    searches = True

    def check(self, step: ResolvedStep) -> None:
        """Sizes come from one budget over both spaces, and the refit is the compensation.

        Raises:
            TrimlineError: the step states budgets per space, or another compensation.
        """
        if step.recipe.pooled is None and step.recipe.target is None:
            raise TrimlineError(
                "The method trimline shares one budget out itself.",
                "Write pooled: {remove: 0.3} or target: {speedup: 1.4} instead of budget.",
            )
        if step.recipe.compensation != "none":
            raise TrimlineError(
                f"The method trimline refits what stays itself; {step.recipe.compensation} would do it twice.", "Leave compensation out."
            )

    def measured(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Measurements:
        """Order, scores and error curve of every sublayer."""
        tensors: dict[str, torch.Tensor] = {}
        for among, found in rank(model, windows, step, events).items():
            tensors |= {curve_name(among, "units"): torch.tensor(found.units), curve_name(among, "scores"): found.scores}
            tensors[curve_name(among, "errors")] = torch.tensor(found.curve.errors, dtype=torch.float64)
        return Measurements(tensors)

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        """All shots; the polishing sweeps belong to the last."""
        options, recipe = options_of(step, TrimlineOptions), step.recipe
        start = model.current
        dense = model.twin() if recipe.search and recipe.shots > 1 else None  # what later shots aim at
        with dense_streams(model) as streams:
            for shot in range(1, recipe.shots + 1):
                if measurements and shot == 1:
                    ranked = _ranked_before(model, measurements, step)
                else:
                    ranked = rank(model, windows, step, events, streams if shot == 1 else None)
                sizes = _sizes(ranked, model, start, step, shot / recipe.shots)
                facts: dict[str, Any] = {"tokens": windows.numel()}
                if recipe.search:  # choices are judged with least squares on the dense model's activations; the refit comes after
                    order = {key: found.units for key, found in ranked.items()}
                    sizes, facts["search"] = searched(SizeSearch(step, model, windows, order, "least_squares", dense), sizes, {}, events)
                stay = _everything(model) | {key: tuple(sorted(found.units[: sizes[key]])) for key, found in ranked.items()}
                refit(model, streams, windows, stay, options.share, options.ridge, events)
                aim = recipe.target and Aim(recipe.target, model.selection, model.geometry, step.consumer)
                facts |= {"target": aim.facts(model.current)} if aim else {}
                for _ in range(options.polish if shot == recipe.shots else 0):
                    refit(model, streams, windows, _everything(model), options.share, options.ridge, events)
                yield _record(step, shot, facts, ranked, stay)


def rank(
    model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events, streams: DenseStreams | None = None
) -> dict[IndexSet, Ranked]:
    """Every sublayer of the step's spaces that is left; one block's factors in memory at a time. ``streams`` note what the blocks give."""
    family = model.geometry.family
    spaces = [SPACES[sublayer] for sublayer in Sublayer if SPACES[sublayer] in step.spaces]
    readers = frozenset(family.reader(SUBLAYERS[space]).name for space in spaces)
    needs = GradientNeeds(kronecker=readers, relative=options_of(step, TrimlineOptions).relative)
    found: dict[IndexSet, Ranked] = {}
    run = streams.run if streams else run_block
    for block, gradients in gradient_sweep(model.model, family, windows, needs, events, model.waiting_bytes, run):
        for space in spaces:
            if block in model.selection.blocks and model.selection.units(SUBLAYERS[space])[block]:
                found[IndexSet(space, block)] = _ranked(model, IndexSet(space, block), gradients, step)
        del gradients  # larger than the block
    if streams:
        streams.is_whole = True
    return found


def _ranked(model: ShrinkingModel, among: IndexSet, gradients: BlockGradients, step: ResolvedStep) -> Ranked:
    geometry, sublayer, block = model.geometry, SUBLAYERS[among.space], among.block
    left, reader = model.selection.units(sublayer)[block], geometry.family.reader(sublayer)
    width = geometry.unit_width(reader.columns)
    columns = channels(left, width)
    inputs = gradients.inputs[reader.point][columns][:, columns]
    if model.has_bias(reader):  # it takes up the mean of what goes, as in the refit
        total = gradients.totals[reader.point][columns].double()
        inputs = inputs.double() - torch.outer(total, total) / gradients.tokens
    weight = model.weight(block, reader.name)[:, columns].to(inputs.device)
    found = eliminate(
        weight,
        inputs,
        gradients.outputs[reader.name],
        width,
        step.recipe.damping,
        options_of(step, TrimlineOptions).correlation,
        ridge_counts=not options_of(step, TrimlineOptions).relative,
    )
    grid = _grid(among, len(left), step)
    curve = Curve(grid, found.errors[grid].tolist(), _unit_cost(geometry, among, step))
    return Ranked(tuple(left[place] for place in found.order.tolist()), found.costs, curve)


def _ranked_before(model: ShrinkingModel, measurements: Measurements, step: ResolvedStep) -> dict[IndexSet, Ranked]:
    """What ``rank`` gave when ``Trimline.measured`` asked it."""
    tensors, found = measurements.tensors, {}
    for name, units in tensors.items():
        among, part = curve_named(name)
        if part == "units":
            grid, errors = _grid(among, len(units), step), tensors[curve_name(among, "errors")].tolist()
            curve = Curve(grid, errors, _unit_cost(model.geometry, among, step))
            found[among] = Ranked(tuple(units.tolist()), tensors[curve_name(among, "scores")], curve)
    return found


def _unit_cost(geometry: Geometry, among: IndexSet, step: ResolvedStep) -> float:
    """In the measure of a pooled budget; a target counts costs of its own."""
    return unit_sizes(geometry, step.recipe.pooled)[among.space] if step.recipe.pooled else 1.0


def _grid(among: IndexSet, units: int, step: ResolvedStep) -> list[int]:
    """Sizes that a sublayer may take, descending from what it has."""
    return size_grid(units, step.recipe.tile(among.space), step.recipe.allow_empty)


def _sizes(ranked: Mapping[IndexSet, Ranked], model: ShrinkingModel, start: Geometry, step: ResolvedStep, part: float) -> Counts:
    """Units that every sublayer keeps after this shot, so that ``part`` of the whole budget is gone."""
    if step.recipe.target:
        return _sizes_within_target(ranked, model, start, step, part)
    pool, current = step.recipe.pooled, model.current
    assert pool is not None
    before, now = whole_of(start, pool), whole_of(current, pool)
    remove = now - (1 - part * pool.remove) * before
    curves = {among: found.curve for among, found in ranked.items()}
    if remove > (most := most_removed(curves)) + max((curve.largest_tile for curve in curves.values()), default=0) / 2:
        possible = (before - now + most) / before
        raise TrimlineError(
            f"Removing {part * pool.remove:.1%} of the decoder's {pool.of} is not possible: {possible:.1%} can go.",
            f"Ask for less{'' if step.recipe.allow_empty else ', or set allow_empty: true, so that blocks may lose a sublayer'}.",
        )
    return sizes_within(curves, remove)


def _sizes_within_target(
    ranked: Mapping[IndexSet, Ranked], model: ShrinkingModel, start: Geometry, step: ResolvedStep, part: float
) -> Counts:
    assert step.recipe.target is not None
    target = part_of(step.recipe.target, part, start, model.geometry, step.consumer)
    losses = {among: dict(zip(found.curve.kept, found.curve.errors, strict=True)) for among, found in ranked.items()}
    return best_sizes(Aim(target, model.selection, model.geometry, step.consumer), losses)


def _everything(model: ShrinkingModel) -> dict[IndexSet, tuple[int, ...]]:
    left = model.selection
    return {IndexSet(space, block): left.units(sublayer)[block] for sublayer, space in SPACES.items() for block in left.blocks}


def _record(
    step: ResolvedStep, shot: int, facts: dict[str, Any], ranked: Mapping[IndexSet, Ranked], stays: Mapping[IndexSet, tuple[int, ...]]
) -> tuple[Step, Scores]:
    title = f"{step.recipe.method} on {', '.join(space.value for space in step.spaces)}"
    title += f", shot {shot} of {step.recipe.shots}" if step.recipe.shots > 1 else ""
    order = sorted(ranked, key=lambda among: (SUBLAYERS[among.space].value, among.block))
    scores: Scores = {}
    errors: dict[str, dict[str, float]] = {}
    for among in order:
        found = ranked[among]
        errors[units_name(*among)] = dict(zip(map(str, found.curve.kept), found.curve.errors, strict=True))
        scores.setdefault(among.space, {})[among.block] = found.scores
    units = {units_name(*among): stays[among] for among in order}
    return Step(title, step.record, units, facts | {"errors by size": errors}), scores
