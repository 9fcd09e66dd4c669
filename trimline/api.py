"""The Python API: one typed function per verb. Each raises ``TrimlineError`` for anything a caller can mend."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import Results, read
from benchmarks.stage import benchmark
from deploy.add import add_targets, is_package
from deploy.targets import with_targets
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf as write_gguf
from exporters.onnx.files import GRAPH
from exporters.onnx.gate.evaluate import evaluate_graph
from exporters.onnx.stage import export as write_export
from exporters.onnx.tasks.harness import examine_graph
from exporters.recipe import BuildSlice, ExportSlice
from exporters.tensorrt.shapes import Request
from exporters.tensorrt.stage import RECORD as BUILD_RECORD
from exporters.tensorrt.stage import build as write_build
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import WORK, digest, file_digest, folder_digest, whole_folder
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.harness.scores import RESULT as TASKS
from pipeline.evaluate.harness.stage import examine
from pipeline.evaluate.harness.tasks import check_tasks
from pipeline.evaluate.perplexity import RESULT
from pipeline.evaluate.perplexity import evaluate as write_evaluation
from pipeline.evaluate.recipe import EvaluateSlice, LmEvalSlice
from pipeline.plan.plan import Plan
from pipeline.prune.stage import prune as write_plan
from pipeline.prune.steps import check_steps
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild as write_rebuild
from pipeline.recover.processes import first_process
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import check_recovery, result_key
from pipeline.recover.stage import recover as write_recovered
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.model import source as write_source
from pipeline.sources.places import typed_path
from pipeline.sources.recipe import ModelSlice, TextSlice, TextSource
from pipeline.sources.text import describe, load_text
from pipeline.sources.text import texts as write_texts
from trimline.comparisons.comparison import Comparison, comparisons
from trimline.comparisons.measure import measured
from trimline.comparisons.results import read_results
from trimline.comparisons.tables import write_comparison
from trimline.recipe import Recipe, checked_recipe, plain_values, read_recipe
from trimline.reporting import ReportData, write_report
from trimline.stages.graph import Run, RunResult
from trimline.stages.keys import stage_code
from trimline.stages.rounds import consumer_of
from trimline.sweeps.data import SweepData
from trimline.sweeps.executors import executor_of
from trimline.sweeps.grid import grid_points
from trimline.sweeps.run import sweep as run_sweep
from trimline.sweeps.timing import TOGETHER

QUIET = Events()
HERE = RunOptions()


def run(
    recipe: Path | str | Recipe | Mapping[str, Any],
    output: Path | str,
    *,
    options: RunOptions = HERE,
    events: Events = QUIET,
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


def prune(
    recipe: Path | str | Recipe | Mapping[str, Any],
    output: Path | str,
    *,
    model: Path | str | None = None,
    options: RunOptions = HERE,
    events: Events = QUIET,
) -> Plan:
    """Calibrates and decides; writes a plan folder. ``model`` replaces the recipe's."""
    wanted = as_recipe(recipe)
    named = wanted.model if model is None else ModelSlice(source=str(model))
    check_steps(wanted.prune)
    with _checkpoint(named, options, events) as folder, whole_folder(Path(output)) as out, tempfile.TemporaryDirectory() as scratch:
        if wanted.prune.calibration.token_ids is None:
            write_texts(wanted.text, options, Path(scratch), events)
        write_plan(folder, Path(scratch), wanted.prune, options, out, events, consumer=consumer_of(wanted, None))
    return Plan.read(Path(output))


def rebuild(
    model: Path | str,
    plan: Path | str,
    output: Path | str,
    *,
    profile: Profile | str = Profile.UNIFORM,
    options: RunOptions = HERE,
    events: Events = QUIET,
) -> Path:
    """Applies a plan to a model; writes and gates a smaller checkpoint folder."""
    if profile not in list(Profile):
        raise TrimlineError(f"There is no shape profile {str(profile)!r}.", f"Use one of {', '.join(Profile)}.")
    with _checkpoint(ModelSlice(source=str(model)), options, events) as folder, whole_folder(Path(output)) as out:
        write_rebuild(folder, Path(plan), RebuildSlice(profile=Profile(profile)), options, out, events)
    return Path(output)


def recover(
    recipe: Path | str | Recipe | Mapping[str, Any],
    pruned: Path | str,
    output: Path | str,
    *,
    model: Path | str | None = None,
    options: RunOptions = HERE,
    events: Events = QUIET,
) -> Path:
    """Trains a smaller checkpoint as the recipe's ``recover`` says; writes and gates a checkpoint folder of the same form.

    Interrupted, the same call goes on from the last state that was saved. Launched by torchrun, every process trains.

    Args:
        recipe: its ``recover``, ``text`` and, for distillation, ``model`` are read.
        pruned: a folder that ``rebuild`` wrote, or any checkpoint folder.
        output: new or empty folder.
        model: the dense model, instead of the recipe's.
        options: device, dtype, threads.
        events: progress.
    """
    wanted = as_recipe(recipe)
    if wanted.recover is None:
        raise TrimlineError("The recipe does not say how to recover.", "Add to it, say, recover: {kind: lora}.")
    check_recovery(wanted.recover, options)
    named = wanted.model if model is None else ModelSlice(source=str(model))
    taught = wanted.recover.loss == "distillation"
    with tempfile.TemporaryDirectory() as scratch, _checkpoint(named, options, events) if taught else nullcontext(Path()) as dense:
        texts = Path(scratch) / "texts"
        texts.mkdir()
        write_texts(wanted.text, options, texts, events)
        work = _work_of(Path(output), wanted.recover, Path(pruned), dense if taught else None, texts, options)
        with whole_folder(Path(output) if first_process() else Path(scratch) / "other") as out:
            write_recovered(dense, Path(pruned), texts, wanted.recover, options, out, work, events)
    if first_process():
        for left in work.parent.glob(f"{WORK}{Path(output).name}-*"):
            shutil.rmtree(left, ignore_errors=True)
    return Path(output)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean cross-entropy per predicted token, with its standard error over windows."""

    value: float
    standard_error: float | None
    text: str
    window_losses: tuple[float, ...]


def evaluate(
    model: Path | str,
    *,
    text: str = "default",
    windows: int = 16,
    window: int = 1024,
    options: RunOptions = HERE,
    events: Events = QUIET,
) -> Perplexity:
    """Perplexity on non-overlapping windows of a text, of a model or of a folder that ``export`` wrote, by its graph."""
    named, wanted = TextSource(source=text), EvaluateSlice(windows=windows, window=window)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        (out / "evaluation.txt").write_text(load_text(named, "evaluation"), encoding="utf-8", newline="")
        write_json(out / "text.json", {"evaluation": {"name": describe(named, "evaluation")}})
        if (Path(model) / GRAPH).is_file():
            evaluate_graph(None, Path(model), out, wanted, options, out, events)
        else:
            with _checkpoint(ModelSlice(source=str(model)), options, events) as folder:
                write_evaluation(folder, out, wanted, options, out, events)
        found = read_json(out / RESULT)
    return Perplexity(found["perplexity"], found["standard_error"], text, tuple(found["window_losses"]))


def evaluate_tasks(model: Path | str, recipe: LmEvalSlice, *, options: RunOptions = HERE, events: Events = QUIET) -> dict[str, Any]:
    """Tasks of the lm-eval harness, on a model or on a folder that ``export`` wrote; returns what tasks.json holds."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        if (Path(model) / GRAPH).is_file():
            examine_graph(Path(model), recipe, options, out, events)
        else:
            check_tasks(recipe, events)
            with _checkpoint(ModelSlice(source=str(model)), options, events) as folder:
                examine(folder, recipe, options, out, events)
        return dict(read_json(out / TASKS))


def export(
    model: Path | str, output: Path | str, *, recipe: ExportSlice | None = None, options: RunOptions = HERE, events: Events = QUIET
) -> Path:
    """Writes and gates an ONNX folder that ONNX Runtime and onnxruntime-genai open."""
    with _checkpoint(ModelSlice(source=str(model)), options, events) as folder, whole_folder(Path(output)) as out:
        write_export(folder, recipe or ExportSlice(), options, out, events)
    return Path(output)


def export_gguf(
    model: Path | str, output: Path | str, *, recipe: GgufSlice | None = None, options: RunOptions = HERE, events: Events = QUIET
) -> Path:
    """Writes and gates a folder with one GGUF file that llama.cpp loads."""
    with _checkpoint(ModelSlice(source=str(model)), options, events) as folder, whole_folder(Path(output)) as out:
        write_gguf(folder, recipe or GgufSlice(), options, out, events)
    return Path(output)


def build(
    onnx: Path | str,
    output: Path | str,
    *,
    recipe: BuildSlice | None = None,
    requests: Sequence[Request] = (),
    calibration: str = "default",
    evaluation: str = "default",
    timing_cache: Path | None = None,
    options: RunOptions = HERE,
    events: Events = QUIET,
) -> dict[str, Any]:
    """Builds a TensorRT engine from a portable ONNX folder; returns what its build.json holds.

    Args:
        onnx: as ``export`` writes it with the portable lowering.
        output: new or empty folder.
        recipe: builder, sparsity, precision.
        requests: that the engine must serve; a prompt of 512, and 16 steps after a prompt of 128, where there are none.
        calibration, evaluation: texts that int8 is calibrated and judged on.
        timing_cache: file of kernel timings, read and added to.
        options: threads.
        events: progress.
    """
    wanted = recipe or BuildSlice()
    with tempfile.TemporaryDirectory() as scratch, whole_folder(Path(output)) as out:
        if wanted.precision == "int8":
            named = TextSlice(calibration=TextSource(source=calibration), evaluation=TextSource(source=evaluation))
            write_texts(named, options, Path(scratch), events)
        write_build(Path(onnx), wanted, requests, options, out, events, texts=Path(scratch), timing_cache=timing_cache)
    return dict(read_json(Path(output) / BUILD_RECORD))


def bench(
    dense: Path | str,
    candidates: Mapping[str, Path | str],
    output: Path | str,
    *,
    accuracy: Mapping[str, float] | None = None,
    recipe: BenchmarkSlice | None = None,
    options: RunOptions = HERE,
    events: Events = QUIET,
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
    with whole_folder(Path(output)) as out:
        benchmark(Path(dense), folders, recipe or BenchmarkSlice(), options, out, events, accuracy or {})
    return read(Path(output)).as_record()


def report(folder: Path | str, output: Path | str) -> Path:
    """Draws the report of a run again from its report.json; returns the page."""
    data = ReportData.read(_report_of(Path(folder)) / "report.json")
    with whole_folder(Path(output)) as out:
        write_report(data, out)
    return Path(output) / "report.html"


def sweep(
    recipe: Path | str | Recipe | Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    output: Path | str,
    *,
    together: int = TOGETHER,
    shards: int = 1,
    ray: str | None = None,
    options: RunOptions = HERE,
    events: Events = QUIET,
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
    events: Events = QUIET,
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
    events: Events = QUIET,
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
        with whole_folder(Path(output)) as out:
            add_targets(Path(recipe), targets, options, out, events)
        return Path(output)
    wanted = as_recipe(recipe)
    served = wanted.model_copy(update={"package": with_targets(wanted.package, targets)})
    return run(served, output, options=options, events=events).package


def as_recipe(recipe: Path | str | Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe from a file, from plain values, or as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    return checked_recipe(dict(recipe)) if isinstance(recipe, Mapping) else read_recipe(Path(recipe))


@contextmanager
def _checkpoint(named: ModelSlice, options: RunOptions, events: Events) -> Iterator[Path]:
    """The checkpoint folder of a named model; converted or downloaded ones live as long as the call."""
    path = typed_path(named.source)
    if path.is_dir():
        yield checkpoint_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="trimline-source-") as scratch:
        write_source(named, options, Path(scratch), events)
        yield checkpoint_folder(Path(scratch))


def _work_of(output: Path, recipe: RecoverSlice, pruned: Path, dense: Path | None, texts: Path, options: RunOptions) -> Path:
    """Where a recovery of exactly these inputs keeps its states: beside the output, under a name that no other one has."""
    inputs = {
        "pruned": folder_digest(pruned),
        "dense": folder_digest(dense) if dense else "",
        "text": file_digest(texts / "calibration.txt"),
        "code": stage_code("pipeline.recover.stage"),
    }
    return output.parent / f"{WORK}{output.name}-{digest(inputs | result_key(recipe, options))[:12]}"


def _report_of(folder: Path) -> Path:
    if (folder / "report.json").exists():
        return folder
    if (folder / "report.html").is_symlink():
        return (folder / "report.html").resolve().parent
    raise TrimlineError(f"{folder} holds no report.json.", "Give the output folder of `trimline run`, or its report folder.")


__all__ = [
    "Perplexity", "bench", "build", "compare", "evaluate", "evaluate_tasks", "export", "export_gguf", "package", "prune", "rebuild", "recover", "report", "run",
    "sweep",
]  # fmt: skip
