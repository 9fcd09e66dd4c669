"""The Python API: one typed function per verb. Each raises ``TrimlineError`` for anything a caller can mend.

Verbs that are one stage stand in ``trimline/verbs.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import Results, read
from benchmarks.stage import benchmark
from deploy.add import add_targets, is_package
from deploy.folder import HTML, REPORT
from deploy.targets import with_targets
from pipeline.artefacts.artefact import whole_folder
from pipeline.artefacts.inputs import Watched
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.memory import parse_bytes
from pipeline.common.options import RunOptions
from trimline.comparisons.comparison import Comparison, comparisons
from trimline.comparisons.measure import measured
from trimline.comparisons.results import read_results
from trimline.comparisons.tables import write_comparison
from trimline.progress import IN_NOTEBOOKS
from trimline.recipe import Recipe, as_recipe, plain_values
from trimline.reporting import ReportData, write_report
from trimline.stages.run import Run, RunResult
from trimline.starting.new import NewRecipe, like_shipped, new_recipe
from trimline.starting.purpose import Purpose
from trimline.sweeps.data import SweepData
from trimline.sweeps.executors import executor_of
from trimline.sweeps.grid import grid_points
from trimline.sweeps.run import sweep as run_sweep
from trimline.sweeps.timing import TOGETHER
from trimline.verbs import HERE, Perplexity, build, evaluate, evaluate_tasks, export, export_gguf, prune, rebuild, recover


def new(
    model: str,
    output: Path | str | None = None,
    *,
    speedup: float | None = None,
    fit: int | str | None = None,
    remove: float | None = None,
    consumers: Sequence[str] = (),
    like: str | None = None,
    command: str | None = None,
) -> NewRecipe:
    """Writes a recipe to start from, with comments; of the model only its config is read.

    Args:
        model: ``default``, a folder, a .gguf file or a hub id.
        output: a new file; by default named after the model, in the current folder.
        speedup: how many times as fast decoding is to be, in ONNX Runtime.
        fit: what weights and a cache of 4,096 tokens may take where the result is served: bytes, or ``8GiB``.
        remove: share of the decoder's linear parameters that goes; 0.2 where nothing is asked for.
        consumers: who is to load the result, as ``--for`` has them.
        like: instead of these, the name of a recipe that ships with Trimline.
        command: what the recipe says was typed.
    """
    path = None if output is None else Path(output)
    if like is not None:
        return like_shipped(model, path, like)
    purpose = Purpose(speedup, parse_bytes(fit) if isinstance(fit, str) else fit, remove)
    return new_recipe(model, path, purpose, consumers, command or f"trimline new {model}")


def run(
    recipe: Path | str | Recipe | Mapping[str, Any],
    output: Path | str,
    *,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
    command: str | None = None,
) -> RunResult:
    """Runs every stage of a recipe; stages whose result is there are skipped.

    Args:
        recipe: a YAML file, a ``Recipe``, or the same as plain values.
        output: folder for everything that is written.
        options: device, dtype, threads.
        events: who is told what happens.
        command: what the report says was typed.
    """
    wanted = as_recipe(recipe)
    typed = command or f"trimline run {recipe if isinstance(recipe, (str, Path)) else 'recipe.yaml'} --output {output}"
    return Run(wanted, options, Path(output), events, typed).all()


def bench(
    dense: Path | str,
    candidates: Mapping[str, Path | str],
    output: Path | str,
    *,
    accuracy: Mapping[str, float] | None = None,
    recipe: BenchmarkSlice | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
) -> dict[str, Any]:
    """Times ONNX folders side by side; returns what results.json holds.

    Args:
        dense: ONNX folder that the others are compared with.
        candidates: name to ONNX folder.
        output: folder for results.json and results.md.
        accuracy: perplexity by name (``dense`` included); a row without one is not printed in results.md.
        recipe: workloads and rounds.
        options: threads, and the device of runtimes that know two.
        events: progress.
    """
    folders = {name: Path(folder) for name, folder in candidates.items()}
    with whole_folder(Path(output), Watched(Path(dense), *folders.values()).demand_unchanged) as out:
        benchmark(Path(dense), folders, recipe or BenchmarkSlice(), options, out, events, accuracy or {})
    return read(Path(output)).as_record()


def report(folder: Path | str, output: Path | str) -> Path:
    """Draws the report of a run again from its report.json; returns the page."""
    data = ReportData.read(_report_of(Path(folder)) / REPORT)
    with whole_folder(Path(output)) as out:
        write_report(data, out)
    return Path(output) / HTML


def sweep(
    recipe: Path | str | Recipe | Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    output: Path | str,
    *,
    together: int = TOGETHER,
    shards: int = 1,
    ray: str | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
    command: str | None = None,
) -> SweepData:
    """Runs every combination of a grid's values, each stage once, times all side by side and writes ``sweep.html``.

    Args:
        recipe: what the points vary.
        grid: keys of the recipe, such as ``prune.steps.0.method``, or ``method``, ``remove``, ``speedup``; and values.
        output: the sweep's folder, new or that of the sweep to go on with.
        together: points that are timed in one interleaved run.
        shards: parts that calibration windows are measured in, each a task, where a step's statistics merge.
        ray: address of a Ray cluster that runs the stages, instead of this process.
        options: device, dtype, threads.
        events: progress.
        command: what the page says was typed.

    Returns:
        What was found; a point that failed says why.
    """
    named = isinstance(recipe, (str, Path))
    base, points = grid_points(plain_values(recipe), grid, str(recipe) if named else "the recipe")
    typed = command or f"trimline sweep {recipe if named else 'recipe.yaml'} --output {output}"
    with executor_of(ray, options, events, Path(output)) as executor:
        return run_sweep(
            base, points, Path(output), executor, options=options, events=events, command=typed, together=together, shards=shards
        )


def compare(
    results: Sequence[Path | str],
    *,
    measure: bool = False,
    together: int = TOGETHER,
    output: Path | str | None = None,
    recipe: BenchmarkSlice | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
) -> tuple[Comparison, ...]:
    """Puts results side by side: who is faster, who predicts better, and who at equal latency; one comparison per workload.

    Args:
        results: output folders of ``run``, packages, a sweep's folder or its points.
        measure: time them anew, side by side; the first is then what the speed-ups are over.
        together: results that are timed in one interleaved run, beside the first.
        output: new or empty folder for compare.json, compare.md and, where it was measured, results-1.json and so on, one per run.
        recipe: what is timed.
        options: threads.
        events: progress.
    """
    found = read_results([Path(result) for result in results])
    documents: list[Results] = []
    with whole_folder(Path(output)) if output is not None else nullcontext() as out:
        if measure:
            found, documents = measured(found, recipe or BenchmarkSlice(), options, events, together)
        compared = comparisons(found)
        if out is not None:
            write_comparison(compared, documents, out)
    return compared


def package(
    recipe: Path | str | Recipe | Mapping[str, Any],
    output: Path | str,
    *,
    targets: Sequence[str] = (),
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
) -> Path:
    """The folder to ship, of a recipe's run in ``output``; what is missing is run first.

    Args:
        recipe: as for ``run``; or a package folder, which is copied to ``output``, a new folder, with more targets.
        output: the run's folder.
        targets: servers to write folders for, beside those that the recipe names.
        options: device, dtype, threads.
        events: progress.
    """
    if isinstance(recipe, (str, Path)) and is_package(Path(recipe)):
        parts = (path for path in (Path(recipe), *Path(recipe).rglob("*")) if path.is_dir())
        with whole_folder(Path(output), Watched(*parts).demand_unchanged) as out:
            add_targets(Path(recipe), targets, options, out, events)
        return Path(output)
    wanted = as_recipe(recipe)
    served = wanted.model_copy(update={"package": with_targets(wanted.package, targets)})
    return run(served, output, options=options, events=events).package


def _report_of(folder: Path) -> Path:
    if (folder / REPORT).exists():
        return folder
    if (folder / HTML).is_symlink():
        return (folder / HTML).resolve().parent
    if (folder / "store").is_dir():
        raise TrimlineError(f"{folder} holds no report.json: the run in it has not finished.", "Go on with it by the same `trimline run`.")
    raise TrimlineError(f"{folder} holds no report.json.", "Give the output folder of `trimline run`, or its report folder.")


__all__ = [
    "Perplexity", "bench", "build", "compare", "evaluate", "evaluate_tasks", "export", "export_gguf", "new", "package", "prune", "rebuild", "recover", "report", "run",
    "sweep",
]  # fmt: skip
