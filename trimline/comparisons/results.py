"""What runs, packages and sweeps found, in one form that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.results.document import RESULTS, Results, read_file
from deploy.folder import HTML, MANIFEST, RECIPE, REPORT, RUN
from pipeline.artefacts.artefact import RECORD
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from trimline.comparisons.result import Axis, Result, TimedWorkload, dense_of, machine_of, text_of
from trimline.recipe import Recipe, parse_recipe
from trimline.reporting.data import ByText, Measure, Phase, ReportData, TaskRow
from trimline.reporting.headline import UNRESOLVED
from trimline.stages.names import SHIPPED
from trimline.sweeps.data import FILE as SWEEP
from trimline.sweeps.data import POINTS, PointRow, SweepData
from trimline.sweeps.tables import label

KINDS = "the output folder of `trimline run`, a package, a sweep's folder or one of its points"


def read_results(paths: list[Path]) -> list[Result]:
    """Every result behind some folders; a sweep's folder stands for all its points.

    Raises:
        TrimlineError: a folder holds no result, or one without speed or perplexity; fewer than two results; two of one name.
    """
    found = [result for path in paths for result in _read(path)]
    if len(found) < 2:
        raise TrimlineError("There is one result, and nothing to compare it with.", f"Name two or more, each {KINDS}.")
    return _told_apart(found, paths)


def _name(path: Path) -> str:
    """The folder's; a package inside a run's folder is called by both."""
    place = path.absolute()
    return f"{place.parent.name}/{place.name}" if place.name == SHIPPED else place.name


def _told_apart(found: list[Result], paths: list[Path]) -> list[Result]:
    names = [result.name for result in found]
    twice = {name for name in names if names.count(name) > 1}
    if not twice:
        return found
    numbered = [replace(r, name=f"{r.name} ({names[: i + 1].count(r.name)})") if r.name in twice else r for i, r in enumerate(found)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise TrimlineError("A folder is named twice.", "Name each result once.")
    return numbered


def _read(path: Path) -> Iterator[Result]:
    if (path / SWEEP).is_file():
        yield from _of_sweep(path, SweepData.read(path / SWEEP))
    elif path.parent.name == POINTS and (path.parent.parent / SWEEP).is_file():
        yield _of_point(path)
    elif (path / HTML).is_symlink() or (path / REPORT).is_file():
        yield _of_run(path)
    elif (path / MANIFEST).is_file() and (path / RUN).is_file():
        yield _of_package(path)
    else:
        raise TrimlineError(f"{path} holds no result.", f"Give {KINDS}.")


def _of_run(path: Path) -> Result:
    folder = path if (path / REPORT).is_file() else (path / HTML).resolve().parent
    data = ReportData.read(folder / REPORT)
    row = data.model("pruned")
    if row is None or row.perplexity is None or not data.workloads:
        raise TrimlineError(f"{path} holds no pruned model that was evaluated and timed.", "Run its recipe to the end.")
    texts = [text.sha256 for text in data.texts if text.role == "evaluation"]
    recipe = _recipe(data.recipe, path)
    return Result(
        name=_name(path),
        perplexity=row.perplexity,
        losses=row.window_losses,
        text=text_of(data.model_source, texts[0] if texts else "", recipe),
        dense=dense_of(data.model_source, recipe),
        machine=machine_of(data.environment, recipe),
        speeds=_workload_speeds([asdict(workload) for workload in data.workloads], recipe, str(folder.resolve())),
        parameters=row.parameters,
        recipe=recipe,
        by_text=data.by_text,
        tasks=data.tasks,
        timed=_exported(folder),
    )


def _exported(report: Path) -> Path | None:
    """The export beside a report's artefact in its store."""
    if not (report / RECORD).is_file():
        return None
    key = read_json(report / RECORD)["depends"]["inputs"].get("export pruned", "")
    folder = report.parent / f"export-{key[:12]}"
    return folder if key and folder.is_dir() else None


def _of_package(path: Path) -> Result:
    run = read_json(path / RUN)
    row = run["models"].get("pruned", {})
    if not row.get("perplexity") or not run["workloads"]:
        raise TrimlineError(f"The package {path} does not say its perplexity and speed.", "Make it again with `trimline package`.")
    recipe = _recipe((path / RECIPE).read_text(encoding="utf-8"), path)
    texts = [text["sha256"] for text in run["texts"] if text["role"] == "evaluation"]
    return Result(
        name=_name(path),
        perplexity=Measure(**row["perplexity"]),
        losses=tuple(row["window_losses"] or ()),
        text=text_of(run["model_source"], texts[0] if texts else "", recipe),
        dense=dense_of(run["model_source"], recipe),
        machine=machine_of(run["environment"], recipe),
        speeds=_workload_speeds(run["workloads"], recipe, str(path.resolve())),
        parameters=row["parameters"],
        recipe=recipe,
        by_text=tuple(_text_row(row) for row in run.get("by_text", ())),
        tasks=tuple(_task_row(row) for row in run.get("tasks", ())),
        timed=path / "onnx" if (path / "onnx").is_dir() else None,
    )


def _text_row(row: Mapping[str, Any]) -> ByText:
    """As a package's run.json has it."""
    return ByText(row["name"], Measure(**row["dense"]), Measure(**row["pruned"]), row["divergence"], row["same_best"])


def _task_row(row: Mapping[str, Any]) -> TaskRow:
    """The same of a task."""
    sides = {key: Measure(**row[key]) for key in ("dense", "pruned", "onnx", "difference") if row[key] is not None}  # onnx: without a graph
    return TaskRow(**{**row, **sides})


def _workload_speeds(workloads: list[Mapping[str, Any]], recipe: Recipe, run: str) -> dict[Axis, TimedWorkload]:
    """From the workloads of a report: those of its recipe, in their order, each with its phases."""
    axes: list[Axis] = []
    for workload in recipe.benchmark.workloads:
        axes += [(workload.name, "prefill"), *([(workload.name, "decode")] if workload.steps else [])]  # type: ignore[list-item]
    found: dict[Axis, TimedWorkload] = {}
    for axis, row in zip(axes, workloads, strict=True):
        if row["speedup"]:
            speedup, resolved = Measure(**row["speedup"]), not row["verdict"].startswith(UNRESOLVED)
            samples, each = tuple(row["pruned_samples"]), recipe.benchmark.rounds_per_opening
            found[axis] = TimedWorkload(row["pruned"]["value"], speedup, resolved, {run: samples}, each)
    return found


def _of_sweep(path: Path, data: SweepData) -> Iterator[Result]:
    for row in data.points:
        if not row.failure and row.speeds:
            yield _of_row(path, data, row, series=_series(path, data, row))


def _series(path: Path, data: SweepData, row: PointRow) -> str:
    """Points that differ only in numbers lie on one line."""
    words = [str(row.settings[key]) for key, values in data.grid.items() if all(isinstance(value, str) for value in values)]
    return f"{path.resolve().name}: {', '.join(words)}" if words else path.resolve().name


def _of_point(path: Path) -> Result:
    folder = path.resolve().parent.parent
    data = SweepData.read(folder / SWEEP)
    row = next((row for row in data.points if row.name == path.resolve().name), None)
    if row is None or row.failure or not row.speeds:
        why = row.failure or row.untimed if row else "the sweep does not list it."
        raise TrimlineError(f"The point {path.name} holds no result: {why}", "Run the sweep again, or name another point.")
    return _of_row(folder, data, row)


def _of_row(folder: Path, data: SweepData, row: PointRow, series: str = "") -> Result:
    recipe = _recipe(data.recipe, folder)
    assert row.perplexity is not None
    return Result(
        name=label(data, row),
        series=series,
        perplexity=row.perplexity,
        losses=row.window_losses,
        text=text_of(data.model_source, data.text_sha256, recipe),
        dense=dense_of(data.model_source, recipe),
        machine=machine_of(data.environment, recipe),
        speeds=dict(_row_speeds(folder, row, recipe.benchmark.rounds_per_opening)),
        parameters=row.parameters,
        recipe=recipe,
        timed=folder / row.timed,
    )


def _row_speeds(folder: Path, row: PointRow, each: int) -> Iterator[tuple[Axis, TimedWorkload]]:
    for speed in row.speeds:
        assert speed.speedup is not None
        samples = _samples(folder / speed.run / RESULTS, row.name, speed.workload, speed.phase)
        resolved, run = not speed.verdict.startswith(UNRESOLVED), str((folder / speed.run).resolve())
        yield speed.axis, TimedWorkload(speed.latency, speed.speedup, resolved, {run: samples}, each)


def _samples(path: Path, name: str, workload: str, phase: Phase) -> tuple[float, ...]:
    """Seconds per round; none where the run is gone, or timed the same file under another point's name."""
    if not path.is_file():
        return ()
    raw = read_file(path, Results).samples[workload].get(name)
    return tuple(raw.seconds(phase)) if raw else ()


def _recipe(text: str, path: Path) -> Recipe:
    return parse_recipe(text, f"the recipe in {path}")
