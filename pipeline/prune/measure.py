"""The measure stage: what the first shot of a recipe measures, which is the same for every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.architecture.geometry import Geometry
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import MeasuredParts
from pipeline.prune.step import ResolvedStep
from pipeline.prune.steps import resolve_steps

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
    first = resolve_steps(recipe)[0]
    model, windows = opened(source, texts, recipe.calibration, options, _reads_text(first))
    first.measure(model, windows, events, MeasuredParts(parts) if parts else None).write(out)


def measured_part(recipe: PruneSlice, geometry: Geometry) -> dict[str, Any] | None:
    """All that the measurement depends on: the recipe but for how much goes, and in how many shots.

    None where nothing can be kept: single weights have scores as large as the model, some methods measure as they go, and
    statistics may be too large.
    """
    first = resolve_steps(recipe)[0]
    large = first.gram_bytes(geometry)
    if large is None or large > LARGEST:
        return None
    described = first.recipe.model_dump(mode="json", exclude={"budget", "shots", "target", "search"})
    if described["pooled"]:
        del described["pooled"]["remove"]
    described |= {"spaces": [space.value for space in first.spaces], "allow_empty": first.recipe.allow_empty}
    return {"calibration": recipe.calibration.model_dump(mode="json") if _reads_text(first) else None, "step": described}


def _reads_text(first: ResolvedStep) -> bool:
    """Whether what is measured beforehand needs the text; what a compensation needs may be measured as it goes."""
    return first.reads_text if first.statistics is None else bool(first.statistics)
