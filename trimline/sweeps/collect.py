"""What the stages and the timing of a sweep left, put together into what its page shows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.formulas.statistics import paired_difference
from benchmarks.results.document import Results, read
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.files import read_json
from pipeline.plan.plan import Plan
from pipeline.sources.folder import TEXTS
from pipeline.sources.model import describe
from trimline.recipe import recipe_text
from trimline.reporting.data import BlockRow, Measure
from trimline.stages.collect import block_rows, environment_rows, interval
from trimline.stages.names import DENSE, PLAN, PRUNED, TEXT, Lane
from trimline.stages.target_rows import speed_rows
from trimline.stages.task_rows import task_rows
from trimline.sweeps.data import Front, PointRow, Speed, SweepData
from trimline.sweeps.front import FrontPoint, knee, pareto
from trimline.sweeps.grid import GridPoint
from trimline.sweeps.schedule import Lanes
from trimline.sweeps.tasks import LaneRun

Timings = Mapping[str, Any]


def collect_sweep(
    title: str, command: str, grid: Mapping[str, list[Any]], base: LaneRun, points: Sequence[tuple[GridPoint, Lanes]], timings: Timings
) -> SweepData:
    """Everything that the page of a sweep shows.

    Args:
        title: heading.
        command: what was typed.
        grid: keys and values.
        base: the dense lane, done.
        points: every point with what was done of it.
        timings: what ``time_points`` returned.
    """
    results = {entry["folder"]: read(Path(entry["folder"])) for entry in timings["timed"].values()}
    dense = _dense_row(base, results)
    rows = tuple(_row(point, lanes, base, dense, timings, results) for point, lanes in points)
    text, windows = read_json(base.folder(TEXT) / TEXTS)["evaluation"][0], base.recipe.evaluate
    environment = environment_rows(next(iter(results.values()))) if results else {}
    return SweepData(
        title=title,
        command=command,
        model_source=describe(base.recipe.model),
        recipe=recipe_text(base.recipe),
        grid=dict(grid),
        evaluation=f"{text['name']}, {windows.windows} windows of {windows.window} tokens, not overlapping",
        text_sha256=text["sha256"],
        window=windows.window,
        runtime=base.recipe.benchmark.runtime,
        dense=dense,
        points=rows,
        fronts=tuple(fronts((dense, *rows))),
        environment=environment,
    )


def fronts(rows: Sequence[PointRow]) -> Iterator[Front]:
    """One per workload that a point was timed on: decoding first, as it is what most of a request's time goes to."""
    axes = {speed.axis: None for row in rows for speed in row.speeds if speed.speedup}
    for axis in sorted(axes, key=lambda axis: axis[1] != "decode"):
        places = [
            FrontPoint(row.name, _relative(speed), row.perplexity.value)
            for row in rows
            if row.perplexity and math.isfinite(row.perplexity.value) and (speed := row.speed(axis))
        ]
        members = pareto(places)
        best, why = knee(members)
        yield Front(*axis, tuple(place.name for place in members), best.name if best else None, why)


def _relative(speed: Speed) -> float:
    """Dense is as fast as itself."""
    return speed.speedup.value if speed.speedup else 1.0


def _dense_row(base: LaneRun, results: Mapping[str, Results]) -> PointRow:
    checkpoint = Checkpoint(base.checkpoint(DENSE))
    found = base.perplexity(DENSE)
    blocks = tuple(
        BlockRow(n, block.ffn, block.kv_groups, block.ffn, block.kv_groups) for n, block in enumerate(checkpoint.geometry.blocks)
    )
    return PointRow(
        name=str(DENSE),
        perplexity=Measure(found["perplexity"], error=found["standard_error"]),
        window_losses=tuple(found["window_losses"]),
        speeds=tuple(_speeds(str(DENSE), next(iter(results)), results, base.output)) if results else (),
        blocks=blocks,
        **_sizes(checkpoint.geometry, base.checkpoint(DENSE)),
        **_places(base, DENSE),
    )


def _row(point: GridPoint, lanes: Lanes, base: LaneRun, dense: PointRow, timings: Timings, results: Mapping[str, Results]) -> PointRow:
    if lanes.failure:
        return PointRow(point.name, point.settings, failure=_sentence(lanes.failure))
    run = lanes.as_run(base.options, base.output)
    found, timed = run.perplexity(PRUNED), timings["timed"].get(point.name)
    blocks = Checkpoint(base.checkpoint(DENSE)).geometry.blocks
    return PointRow(
        name=point.name,
        settings=point.settings,
        perplexity=paired_perplexity(found, dense),
        window_losses=tuple(found["window_losses"]),
        speeds=tuple(_speeds(timed["name"], timed["folder"], results, base.output)) if timed else (),
        blocks=tuple(block_rows(Plan.read(run.folder(PLAN)), blocks)),
        tasks=tuple(task_rows(base.done | run.done)) if run.recipe.lm_eval == base.recipe.lm_eval else (),
        targets=tuple(speed_rows(run.recipe.prune, results[timed["folder"]], timed["name"])) if timed else (),
        untimed=timings["failed"].get(point.name, ""),
        **_sizes(Checkpoint(run.checkpoint(PRUNED)).geometry, run.checkpoint(PRUNED)),
        **_places(run, PRUNED),
    )


def paired_perplexity(found: Mapping[str, Any], dense: PointRow) -> Measure:
    """A perplexity with the interval that its ratio to dense's has on the same windows.

    Windows differ from each other far more than two models do on one of them: that both find a passage hard says
    nothing about which is better.
    """
    losses, value = found["window_losses"], found["perplexity"]
    if dense.perplexity is None or len(losses) != len(dense.window_losses) or len(losses) < 2:
        return Measure(value, error=found["standard_error"])
    more = paired_difference(dense.window_losses, losses)
    before = dense.perplexity.value
    return Measure(value, low=before * math.exp(more.low), high=before * math.exp(more.high), error=found["standard_error"])


def _speeds(name: str, folder: str, results: Mapping[str, Results], output: Path) -> Iterator[Speed]:
    """Of one model in one interleaved run; dense has no speed-up."""
    document = results[folder]
    compared = {(row.workload, row.phase): row for row in document.comparisons if row.model == name}
    for timing in document.timings:
        if timing.model != name:
            continue
        row = compared.get((timing.workload, timing.phase))
        yield Speed(
            workload=timing.workload,
            phase=timing.phase,
            latency=timing.seconds.p50,
            speedup=interval(row.speedup) if row else None,
            control=interval(row.control) if row else None,
            verdict=row.verdict if row else "",
            run=os.path.relpath(folder, output),
        )


def _sizes(geometry: Geometry, folder: Path) -> dict[str, Any]:
    return {
        "parameters": geometry.total_parameters(),
        "decoder_parameters": geometry.decoder_parameters(),
        "checkpoint_bytes": Checkpoint(folder).bytes,
    }


def _places(run: LaneRun, lane: Lane) -> dict[str, Any]:
    """Folders in the sweep's own; a dense checkpoint of the user's may lie elsewhere, and keeps its whole path."""
    found = {"checkpoint": run.checkpoint(lane), "timed": run.timed(lane)[1]}
    inside = {name: path.is_relative_to(run.output) for name, path in found.items()}
    return {name: str(path.relative_to(run.output) if inside[name] else path) for name, path in found.items()}


def _sentence(error: Exception) -> str:
    from pipeline.common.errors import explain

    return explain(error)[0]
