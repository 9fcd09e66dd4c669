"""A sweep from its grid to its page."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.folder import RECIPE
from pipeline.artefacts.artefact import exclusive
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.sharding import why_whole
from pipeline.prune.steps import resolve_steps
from trimline.recipe import Recipe, recipe_text
from trimline.stages.lanes import family_of
from trimline.stages.names import DENSE, PRUNED, Lane
from trimline.stages.order import SHARED, jobs
from trimline.sweeps.collect import collect_sweep
from trimline.sweeps.data import FILE, POINTS, SweepData
from trimline.sweeps.grid import GridPoint, axes_of
from trimline.sweeps.schedule import Executor, Lanes, Schedule
from trimline.sweeps.tasks import LaneRun
from trimline.sweeps.timing import TOGETHER, spec_of

PAGE, MARKDOWN = "sweep.html", "sweep.md"


def sweep(
    base: Recipe,
    points: Sequence[GridPoint],
    output: Path,
    executor: Executor,
    *,
    options: RunOptions,
    events: Events,
    command: str,
    together: int = TOGETHER,
    shards: int = 1,
) -> SweepData:
    """Runs every point, times them all, and writes the page. What is in ``output`` already is not made again.

    Args:
        base: the recipe that the points vary; its dense model is the one that all are compared with.
        points: as ``grid_points`` gives them.
        output: the sweep's folder.
        executor: who runs the stages.
        options: device, dtype, threads.
        events: progress.
        command: what the page says was typed.
        together: points that are timed in one interleaved run.
        shards: parts that calibration windows are measured in, where a step's statistics merge.

    Returns:
        What was found; points that failed say why.

    Raises:
        TrimlineError: the dense model cannot be had, evaluated or exported.
    """
    output, options = output.resolve(), RunOptions(**options.as_record())
    with exclusive(output / "store", events):
        shared = LaneRun(base, options, output, events, command)
        for job in SHARED:
            shared.do(job)
        dense = Lanes(str(DENSE), base, dict(shared.done), deque(jobs(base, DENSE)), essential=True)
        lanes = [_lanes(point, shared, shards) for point in points]
        able = [one for one in lanes if not one.failure]
        Schedule(executor, options, output, events).run([dense, *_ahead(able), *able])
        timings = executor.time(_to_time(dense, lanes, options, output, together))
        grid = axes_of(points)
        found = collect_sweep(_title(base), command, grid, dense.as_run(options, output), list(zip(points, lanes, strict=True)), timings)
        write_sweep(found, points, output)
    return found


def write_sweep(found: SweepData, points: Sequence[GridPoint], output: Path) -> None:
    """Writes sweep.json, sweep.html, sweep.md and every point's recipe; each file is replaced whole."""
    from trimline.sweeps.markdown import render_sweep_markdown
    from trimline.sweeps.page import render_sweep

    shutil.rmtree(output / POINTS, ignore_errors=True)
    for point in points:
        place = output / POINTS / point.name
        place.mkdir(parents=True)
        (place / RECIPE).write_text(recipe_text(point.recipe), encoding="utf-8", newline="\n")
    files: Mapping[str, bytes] = {
        FILE: found.to_json(),
        PAGE: render_sweep(found).encode(),
        MARKDOWN: render_sweep_markdown(found).encode(),
    }
    for name, content in files.items():
        beside = output / f".{name}"
        beside.write_bytes(content)
        os.replace(beside, output / name)


def _lanes(point: GridPoint, shared: LaneRun, shards: int) -> Lanes:
    """A point's stages; what can be known before anything is measured is said now."""
    lanes = Lanes(point.name, point.recipe, dict(shared.done))
    try:
        resolve_steps(point.recipe.prune)
    except TrimlineError as error:
        shared.events.note(f"{point.name} cannot be done: {error}")
        return replace(lanes, failure=error)
    if shards > 1 and (why := why_whole(point.recipe.prune)):
        shared.events.note(f"{point.name} is calibrated in one part: {why}")
    return replace(lanes, left=deque(jobs(point.recipe, PRUNED, shards=shards)))


def _ahead(lanes: Sequence[Lanes]) -> Iterator[Lanes]:
    """Parts of calibrations as tasks of their own, so that they are measured at once; the points then find them done."""
    for one in lanes:
        for job in one.left:
            if job.part:
                yield Lanes(f"{one.name}, part {job.part.number} of the calibration", one.recipe, dict(one.done), deque([job]))


def _to_time(dense: Lanes, lanes: Sequence[Lanes], options: RunOptions, output: Path, together: int) -> dict[str, Any]:
    def subject(one: Lanes, lane: Lane) -> dict[str, Any]:
        run = one.as_run(options, output)
        key, folder = run.timed(lane)
        return {"key": key, "folder": str(folder), "perplexity": run.perplexity(lane)["perplexity"]}

    points = {one.name: subject(one, PRUNED) for one in lanes if not one.failure}
    return spec_of(output / "store", dense.recipe.benchmark, options, together, family_of(dense.done), subject(dense, DENSE), points)


def _title(base: Recipe) -> str:
    from pipeline.sources.model import describe

    return f"{base.name}: {describe(base.model)}"
