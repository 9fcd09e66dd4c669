"""Trimline's own method: FFN channels and KV groups, sized by what their loss costs, refitted towards the dense model.

What it takes from whom: the loss of removing units as a Kronecker-factored quadratic, estimated anew before every shot, from
LLM Surgeon (arXiv 2312.17244); unlike there units go one by one, each by what it costs once the reader of the others is
corrected (Optimal Brain Surgeon), so that correlated units are not counted twice and the error of every size is exact.
Units of both spaces compete for one budget as in FLAP (arXiv 2312.11983), here by error per parameter. The order of
blocks, on inputs that the pruned ones before give, is SparseGPT's (arXiv 2301.00774); that the target leans towards the
dense residual stream is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from pipeline.architecture.families import Axis, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import SPACES, Space, channels
from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep
from pipeline.calibrate.measurements import Kept, Scores
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.slices import Slice
from pipeline.plan.plan import Step
from pipeline.prune.allocation.marginal import Curve, most_removed, sizes_within
from pipeline.prune.allocation.pooled import unit_sizes, whole_of
from pipeline.prune.allocation.targeted import Aim, best_sizes, size_grid
from pipeline.prune.allocation.targets import part_of
from pipeline.prune.compensation.refit import refit
from pipeline.prune.kronecker.elimination import eliminate
from pipeline.prune.methods.method import options_of
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneStep


class TrimlineOptions(Slice):
    """Options of trimline."""

    correlation: float = Field(
        1.0, ge=0.0, le=1.0, description="share of the correlations between units that counts in their order and in the error curves"
    )
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
    spaces = frozenset({Space.FFN, Space.KV_GROUP})
    options = TrimlineOptions

    def check(self, step: PruneStep) -> None:
        """Sizes come from one budget over both spaces, and the refit is the compensation.

        Raises:
            TrimlineError: the step states budgets per space, or another compensation.
        """
        if step.pooled is None and step.target is None:
            raise TrimlineError(
                "The method trimline shares one budget out itself.",
                "Write pooled: {remove: 0.3} or target: {speedup: 1.4} instead of budget.",
            )
        if step.compensation != "none":
            raise TrimlineError(
                f"The method trimline refits what stays itself; {step.compensation} would do it twice.", "Leave compensation out."
            )

    def measured(self, model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events) -> Kept:
        """Order, scores and error curve of every sublayer."""
        tensors: dict[str, torch.Tensor] = {}
        for (sublayer, block), found in rank(model, windows, step, events).items():
            place = f"{sublayer}.{block}"
            tensors |= {f"{place}.units": torch.tensor(found.units), f"{place}.scores": found.scores}
            tensors[f"{place}.errors"] = torch.tensor(found.curve.errors, dtype=torch.float64)
        return Kept(tensors)

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events, kept: Kept | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        """All shots; the polishing sweeps belong to the last."""
        options = options_of(step, TrimlineOptions)
        dense = model.twin()
        start = model.current
        for shot in range(1, step.shots + 1):
            ranked = _ranked_before(model, kept, step) if kept and shot == 1 else rank(model, windows, step, events)
            sizes = _sizes(ranked, model, start, step, shot / step.shots)
            stay = _everything(model) | {key: tuple(sorted(found.units[: sizes[key]])) for key, found in ranked.items()}
            refit(model, dense, windows, stay, options.share, options.ridge, events)
            reached = (
                {"target": Aim(step.target, model.current, model.geometry, model.consumer).facts(model.current)} if step.target else {}
            )
            for _ in range(options.polish if shot == step.shots else 0):
                refit(model, dense, windows, _everything(model), options.share, options.ridge, events)
            yield _record(step, shot, {"tokens": windows.numel()} | reached, ranked, stay)


def rank(model: ShrinkingModel, windows: torch.Tensor, step: PruneStep, events: Events) -> dict[tuple[Sublayer, int], Ranked]:
    """Every sublayer of the step's spaces that is left; one block's factors in memory at a time."""
    family = model.geometry.family
    sublayers = [sublayer for sublayer in Sublayer if SPACES[sublayer] in step.spaces]
    needs = GradientNeeds(kronecker=frozenset(family.reader(sublayer).name for sublayer in sublayers))
    found: dict[tuple[Sublayer, int], Ranked] = {}
    for block, gradients in gradient_sweep(model.model, family, windows, needs, events, model.waiting_bytes):
        for sublayer in sublayers:
            if block in model.selection.blocks and model.selection.units(sublayer)[block]:
                found[sublayer, block] = _ranked(model, sublayer, block, gradients, step)
        del gradients  # larger than the block
    return found


def _ranked(model: ShrinkingModel, sublayer: Sublayer, block: int, gradients: BlockGradients, step: PruneStep) -> Ranked:
    geometry, left = model.geometry, model.selection.units(sublayer)[block]
    reader = geometry.family.reader(sublayer)
    width = geometry.unit_width(Axis.FFN if sublayer is Sublayer.FFN else Axis.QUERY)
    columns = channels(left, width)
    inputs = gradients.inputs[reader.point][columns][:, columns]
    if model.has_bias(reader):  # it takes up the mean of what goes, as in the refit
        total = gradients.totals[reader.point][columns].double()
        inputs = inputs.double() - torch.outer(total, total) / gradients.tokens
    weight = model.weight(block, reader.name)[:, columns].to(inputs.device)
    found = eliminate(weight, inputs, gradients.outputs[reader.name], width, step.damping, options_of(step, TrimlineOptions).correlation)
    kept = _kept_grid(sublayer, len(left), step)
    curve = Curve(kept, found.errors[kept].tolist(), _unit_cost(geometry, sublayer, step))
    return Ranked(tuple(left[place] for place in found.order.tolist()), found.costs, curve)


def _ranked_before(model: ShrinkingModel, kept: Kept, step: PruneStep) -> dict[tuple[Sublayer, int], Ranked]:
    """What ``rank`` gave when ``Trimline.measured`` asked it."""
    found: dict[tuple[Sublayer, int], Ranked] = {}
    for name, units in kept.tensors.items():
        place, _, kind = name.rpartition(".")
        if kind == "units":
            sublayer, block = Sublayer(place.split(".")[0]), int(place.split(".")[1])
            grid, cost = _kept_grid(sublayer, len(units), step), _unit_cost(model.geometry, sublayer, step)
            curve = Curve(grid, kept.tensors[f"{place}.errors"].tolist(), cost)
            found[sublayer, block] = Ranked(tuple(units.tolist()), kept.tensors[f"{place}.scores"], curve)
    return found


def _unit_cost(geometry: Geometry, sublayer: Sublayer, step: PruneStep) -> float:
    """In the measure of a pooled budget; a target counts costs of its own."""
    return unit_sizes(geometry, step.pooled)[SPACES[sublayer]] if step.pooled else 1.0


def _kept_grid(sublayer: Sublayer, units: int, step: PruneStep) -> list[int]:
    """Sizes that a sublayer may take, descending from what it has."""
    return size_grid(units, step.round_to if sublayer is Sublayer.FFN else 1, step.allow_empty)


def _sizes(
    ranked: dict[tuple[Sublayer, int], Ranked], model: ShrinkingModel, start: Geometry, step: PruneStep, part: float
) -> dict[tuple[Sublayer, int], int]:
    """Units that every sublayer keeps after this shot, so that ``part`` of the whole budget is gone."""
    if step.target:
        return _sizes_within_target(ranked, model, start, step, part)
    pool, current = step.pooled, model.current
    assert pool is not None
    before, now = whole_of(start, pool), whole_of(current, pool)
    remove = now - (1 - part * pool.remove) * before
    curves = {key: found.curve for key, found in ranked.items()}
    if remove > (most := most_removed(curves)) + max((curve.largest_tile for curve in curves.values()), default=0) / 2:
        possible = (before - now + most) / before
        raise TrimlineError(
            f"Removing {part * pool.remove:.1%} of the decoder's {pool.of} is not possible: {possible:.1%} can go.",
            f"Ask for less{'' if step.allow_empty else ', or set allow_empty: true, so that blocks may lose a sublayer'}.",
        )
    return sizes_within(curves, remove)


def _sizes_within_target(
    ranked: dict[tuple[Sublayer, int], Ranked], model: ShrinkingModel, start: Geometry, step: PruneStep, part: float
) -> dict[tuple[Sublayer, int], int]:
    assert step.target is not None
    target = part_of(step.target, part, start, model.geometry, model.consumer)
    place = {block: number for number, block in enumerate(model.selection.blocks)}
    losses = {
        (sublayer, place[block]): dict(zip(found.curve.kept, found.curve.errors, strict=True))
        for (sublayer, block), found in ranked.items()
    }
    sizes = best_sizes(Aim(target, model.current, model.geometry, model.consumer), losses)
    return {(s, b): sizes.get((s, place[b]), len(found.units)) for (s, b), found in ranked.items()}


def _everything(model: ShrinkingModel) -> dict[tuple[Sublayer, int], tuple[int, ...]]:
    return {(sublayer, block): model.selection.units(sublayer)[block] for sublayer in Sublayer for block in model.selection.blocks}


def _record(
    step: PruneStep,
    shot: int,
    facts: dict[str, Any],
    ranked: dict[tuple[Sublayer, int], Ranked],
    kept: dict[tuple[Sublayer, int], tuple[int, ...]],
) -> tuple[Step, Scores]:
    title = f"{step.method} on {', '.join(space.value for space in step.spaces)}"
    title += f", shot {shot} of {step.shots}" if step.shots > 1 else ""
    places = sorted(ranked, key=lambda key: (key[0].value, key[1]))
    errors = {f"{SPACES[s]}.{b}": dict(zip(map(str, ranked[s, b].curve.kept), ranked[s, b].curve.errors, strict=True)) for s, b in places}
    scores: Scores = {}
    for sublayer, block in places:
        found = ranked[sublayer, block]
        scores.setdefault(SPACES[sublayer], {})[block] = found.scores
    units = {f"{SPACES[sublayer]}.{block}": kept[sublayer, block] for sublayer, block in places}
    return Step(title, step.model_dump(mode="json", exclude_none=True), units, facts | {"errors by size": errors}), scores
