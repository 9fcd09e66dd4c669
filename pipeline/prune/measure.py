"""The measure stage: what the first shot of a recipe measures, which is the same for every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Space
from pipeline.calibrate.measurements import kept_scores
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.methods import ScoringMethod, method_named
from pipeline.prune.methods.method import MeasuringMethod
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.scoring import measure as measure_scores
from pipeline.prune.scoring import needs_of
from pipeline.prune.sharding import Parts
from pipeline.prune.steps import is_sequential

# Gram matrices of a 7B's FFN channels are 15 GB. Beyond this, pruning measures for itself, as each block's turn comes.
LARGEST = 2 * 2**30


def measure(
    source: Path, texts: Path, recipe: PruneSlice, options: RunOptions, out: Path, events: Events, parts: Sequence[Path] = ()
) -> None:
    """Stage: writes what ``prune`` takes as ``measured``; only for a recipe of which ``measured_part`` says something.

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids.
        recipe: its first step is looked at.
        options: device, dtype and threads.
        out: empty folder.
        events: progress.
        parts: what ``measure_part`` wrote, all of it; without, everything is measured here.

    Raises:
        TrimlineError: a step cannot be done, or the text is too short.
    """
    model, windows = opened(source, texts, recipe, options)
    step = recipe.steps[0]
    method = method_named(step.method)
    if isinstance(method, MeasuringMethod):
        method.measured(model, windows, step, events).write(out)
    else:
        given = Parts(parts) if parts else None
        kept_scores(*measure_scores(model, windows, step, events, not is_sequential(step), given)).write(out)


def measured_part(recipe: PruneSlice, geometry: Geometry) -> dict[str, Any] | None:
    """All that the measurement depends on: the recipe but for how much goes, and in how many shots.

    None where nothing can be kept: single weights have scores as large as the model, some methods measure as they go, and
    statistics may be too large.
    """
    step = recipe.steps[0]
    method = method_named(step.method)
    scored = isinstance(method, ScoringMethod) and Space.WEIGHT not in step.spaces
    if not (scored or isinstance(method, MeasuringMethod)) or (scored and _bytes(step, geometry) > LARGEST):
        return None
    described = step.model_dump(mode="json", exclude={"budget", "shots", "target"})
    if described["pooled"]:
        del described["pooled"]["remove"]
    described |= {"spaces": [space.value for space in step.spaces], "allow_empty": step.allow_empty}
    return {"calibration": recipe.calibration.model_dump(mode="json"), "step": described}


def _bytes(step: PruneStep, geometry: Geometry) -> int:
    """Of the Gram matrices that are kept."""
    family, points = geometry.family, needs_of(step, compensated=not is_sequential(step)).gram
    widths = {linear.point: linear.columns for linear in family.linears}
    return sum(4 * geometry.axis_size(widths[point], block) ** 2 for point in points for block in geometry.blocks)
