"""The verbs that run one stage by itself, on folders of the caller's. Each is a row of ``trimline/stages/table.py``, alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf as write_gguf
from exporters.onnx.files import GRAPH
from exporters.onnx.running.shapes import EngineRequest
from exporters.openvino.files import MODEL as OPENVINO
from exporters.recipe import BuildSlice, ExportSlice
from exporters.tensorrt.stage import RECORD as BUILD_RECORD
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import WORK, whole_folder
from pipeline.artefacts.inputs import Watched
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.harness.scores import RESULT as TASKS
from pipeline.evaluate.harness.tasks import check_tasks
from pipeline.evaluate.perplexity import RESULT
from pipeline.evaluate.recipe import EvaluateSlice, LmEvalSlice
from pipeline.plan.plan import Plan
from pipeline.prune.steps import reads_text
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.recover.processes import first_process
from pipeline.recover.stage import check_recovery
from pipeline.sources.folder import EVALUATION, TEXTS
from pipeline.sources.places import typed_path
from pipeline.sources.recipe import ModelSlice, TextSlice, TextSource
from pipeline.sources.text import describe, load_text
from trimline.kept import first_shot_of, states_of, text_files, work_of
from trimline.progress import IN_NOTEBOOKS
from trimline.recipe import Recipe, as_recipe
from trimline.stages.alone import alone, alone_into, checkpoint
from trimline.stages.names import (
    MEASURED,
    PLAN,
    PRUNED,
    RECOVERED,
    SMALLER,
    SOURCE,
    TEXT,
    Lane,
    Name,
    engine_of,
    evaluation_of,
    export_of,
    tasks_of,
)
from trimline.stages.works import BuildInput, first_shot

HERE = RunOptions()


def prune(
    recipe: Path | str | Recipe | Mapping[str, Any],
    output: Path | str,
    *,
    model: Path | str | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
) -> Plan:
    """Calibrates and decides; writes a plan folder. ``model`` replaces the recipe's.

    Stopped, the same call goes on from what its first shot measured, where that can be kept (``pipeline.prune.measure``), and from what
    a search has judged.
    """
    wanted = as_recipe(recipe)
    named = wanted.model if model is None else ModelSlice(source=str(model))
    reads = reads_text(wanted.prune)  # what is wrong with the steps is said before anything is fetched
    with checkpoint(named, options, events) as folder, tempfile.TemporaryDirectory() as scratch:
        watched, taken = Watched(folder, *text_files(wanted.text)), {SOURCE: folder, TEXT: Path(scratch)}
        with whole_folder(Path(output), watched.demand_unchanged) as out, work_of(Path(output)) as work:
            if reads and wanted.prune.calibration.token_ids is None:
                alone(TEXT, wanted.text, {}, Path(scratch), options, events)
            if (part := first_shot(wanted.prune, folder)) is not None:
                taken |= {MEASURED: first_shot_of(wanted, part, taken, work, options, events, watched)}
            alone(PLAN, wanted, taken, out, options, events, states=work / "search")
    shutil.rmtree(work, ignore_errors=True)
    return Plan.read(Path(output))


def rebuild(
    model: Path | str,
    plan: Path | str,
    output: Path | str,
    *,
    profile: Profile | str = Profile.UNIFORM,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
) -> Path:
    """Applies a plan to a model; writes and gates a smaller checkpoint folder."""
    if profile not in list(Profile):
        raise TrimlineError(f"There is no shape profile {str(profile)!r}.", f"Use one of {', '.join(Profile)}.")
    with checkpoint(ModelSlice(source=str(model)), options, events) as folder:
        taken = {SOURCE: folder, PLAN: Path(plan)}
        return alone_into(SMALLER, RebuildSlice(profile=Profile(profile)), taken, output, options, events)


def recover(
    recipe: Path | str | Recipe | Mapping[str, Any],
    pruned: Path | str,
    output: Path | str,
    *,
    model: Path | str | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
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
    with tempfile.TemporaryDirectory() as scratch, checkpoint(named, options, events) if taught else nullcontext() as dense:
        texts = Path(scratch) / "texts"
        texts.mkdir()
        watched = Watched(Path(pruned), *([dense] if dense else []), *text_files(wanted.text))
        alone(TEXT, wanted.text, {}, texts, options, events)
        states = states_of(Path(output), wanted.recover, Path(pruned), dense, texts, options)
        taken = {SMALLER: Path(pruned), TEXT: texts} | ({SOURCE: dense} if dense else {})
        with whole_folder(Path(output) if first_process() else Path(scratch) / "other", watched.demand_unchanged) as out:
            alone(RECOVERED, wanted.recover, taken, out, options, events, states=states)
    if first_process():
        for left in states.parent.glob(f"{WORK}{Path(output).name}-*"):
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
    events: Events = IN_NOTEBOOKS,
) -> Perplexity:
    """Perplexity on non-overlapping windows of a text, of a model or of a folder that ``export`` wrote, by its graph."""
    named, wanted = TextSource(source=text), EvaluateSlice(windows=windows, window=window)
    with tempfile.TemporaryDirectory() as scratch:
        out, watched = Path(scratch), Watched(typed_path(text), typed_path(str(model)))
        (out / EVALUATION).write_text(load_text(named, "evaluation"), encoding="utf-8", newline="")
        write_json(out / TEXTS, {"evaluation": [{"name": describe(named, "evaluation")}]})
        _judge(evaluation_of, model, wanted, {TEXT: out}, out, options, events)
        watched.demand_unchanged()
        found = read_json(out / RESULT)
    return Perplexity(found["perplexity"], found["standard_error"], text, tuple(found["window_losses"]))


def evaluate_tasks(model: Path | str, recipe: LmEvalSlice, *, options: RunOptions = HERE, events: Events = IN_NOTEBOOKS) -> dict[str, Any]:
    """Tasks of the lm-eval harness, on a model or on a folder that ``export`` wrote; returns what tasks.json holds."""
    if (Path(model) / OPENVINO).is_file():
        raise TrimlineError(f"Tasks are asked of checkpoints and ONNX graphs, and {model} is in OpenVINO's form.", "Ask its checkpoint.")
    with tempfile.TemporaryDirectory() as scratch:
        if not is_export(Path(model)):
            check_tasks(recipe, events)
        watched = Watched(typed_path(str(model)))
        _judge(tasks_of, model, recipe, {}, Path(scratch), options, events)
        watched.demand_unchanged()
        return dict(read_json(Path(scratch) / TASKS))


def export(
    model: Path | str, output: Path | str, *, recipe: ExportSlice | None = None, options: RunOptions = HERE, events: Events = IN_NOTEBOOKS
) -> Path:
    """Writes and gates an ONNX folder that ONNX Runtime and onnxruntime-genai open, or one in OpenVINO's form."""
    with checkpoint(ModelSlice(source=str(model)), options, events) as folder:
        return alone_into(export_of(PRUNED), recipe or ExportSlice(), {SOURCE: folder}, output, options, events)


def export_gguf(
    model: Path | str, output: Path | str, *, recipe: GgufSlice | None = None, options: RunOptions = HERE, events: Events = IN_NOTEBOOKS
) -> Path:
    """Writes and gates a folder with one GGUF file that llama.cpp loads."""
    with (
        checkpoint(ModelSlice(source=str(model)), options, events) as folder,
        whole_folder(Path(output), Watched(folder).demand_unchanged) as out,
    ):
        write_gguf(folder, recipe or GgufSlice(), options, out, events)
    return Path(output)


def build(
    onnx: Path | str,
    output: Path | str,
    *,
    recipe: BuildSlice | None = None,
    requests: Sequence[EngineRequest] = (),
    calibration: str = "default",
    evaluation: str = "default",
    timing_cache: Path | None = None,
    options: RunOptions = HERE,
    events: Events = IN_NOTEBOOKS,
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
    wanted = BuildInput(recipe or BuildSlice(), tuple(requests))
    watched = Watched(Path(onnx), typed_path(calibration), typed_path(evaluation))
    with tempfile.TemporaryDirectory() as scratch, whole_folder(Path(output), watched.demand_unchanged) as out:
        taken = {export_of(PRUNED): Path(onnx), TEXT: Path(scratch)}
        if wanted.recipe.precision == "int8":
            named = TextSlice(calibration=TextSource(source=calibration), evaluation=TextSource(source=evaluation))
            alone(TEXT, named, {}, Path(scratch), options, events)
        alone(engine_of(PRUNED), wanted, taken, out, options, events, timing_cache=timing_cache)
    return dict(read_json(Path(output) / BUILD_RECORD))


def _judge(
    of: Callable[[Lane], Name], model: Path | str, recipe: Any, taken: Mapping[Name, Path], out: Path, options: RunOptions, events: Events
) -> None:
    """A stage that judges a model in one of two forms, on the form that a folder holds."""
    if is_export(Path(model)):
        alone(of(PRUNED.graph), recipe, {**taken, export_of(PRUNED): Path(model)}, out, options, events)
        return
    with checkpoint(ModelSlice(source=str(model)), options, events) as folder:
        alone(of(PRUNED), recipe, {**taken, SOURCE: folder}, out, options, events)


def is_export(folder: Path) -> bool:
    """Whether ``export`` wrote it."""
    return (folder / GRAPH).is_file() or (folder / OPENVINO).is_file()


__all__ = ["Perplexity", "build", "evaluate", "evaluate_tasks", "export", "export_gguf", "prune", "rebuild", "recover"]
