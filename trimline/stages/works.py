"""The work of stages that takes more than one call, and what of it their keys cover."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.latency.shapes import Form
from benchmarks.latency.stage import adopt, latency_table, setting_of
from benchmarks.stage import benchmark
from deploy.package import PackageParts, package
from exporters.onnx.gate.evaluate import evaluate_graph
from exporters.onnx.running.shapes import EngineRequest
from exporters.onnx.stage import export
from exporters.openvino.evaluate import evaluate_openvino
from exporters.openvino.files import MODEL as OPENVINO
from exporters.openvino.stage import export_openvino
from exporters.recipe import BuildSlice, ExportSlice
from exporters.tensorrt.stage import build
from pipeline.artefacts.artefact import folder_digest, work_beside
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.files import read_json
from pipeline.curve.stage import curve
from pipeline.evaluate.harness.tasks import check_tasks
from pipeline.evaluate.perplexity import RESULT, evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.prune.consumer import Consumer
from pipeline.prune.measure import measure, measured_part
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import measure_part, statistics_part
from pipeline.prune.stage import prune
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from trimline.recipe import Recipe, recipe_text
from trimline.reporting import write_report
from trimline.reporting.data import Role
from trimline.stages.collect import Folders, collect
from trimline.stages.lanes import evaluated, origin, timed
from trimline.stages.names import (
    DENSE,
    LANES,
    LATENCY,
    MEASURED,
    PLAN,
    PRUNED,
    RECOVERED,
    REPORT,
    SHIPPED,
    SMALLER,
    SOURCE,
    TEXT,
    TIMINGS,
    Lane,
    engine_of,
    export_of,
)  # fmt: skip
from trimline.stages.preflight import preflight
from trimline.stages.rounds import consumer_of, tile_of
from trimline.stages.stage import Inputs, StageCase, present


class BuildInput(NamedTuple):
    """What a build reads of the recipe: its slice, and the requests that the benchmark will make."""

    recipe: BuildSlice
    requests: tuple[EngineRequest, ...]


def check(inputs: Inputs[Recipe]) -> None:
    """Whether the shape profile can hold what the steps may produce, before anything is measured."""
    preflight(inputs.slice, inputs.options, Checkpoint(inputs.folder(SOURCE)))
    if inputs.slice.lm_eval:
        check_tasks(inputs.slice.lm_eval, inputs.events)


def latency_key(inputs: Inputs[Recipe]) -> dict[str, Any]:
    """Sizes of the model, how it is written and run, and the machine; or the table that is taken over."""
    depends = setting_of(Checkpoint(inputs.folder(SOURCE)).geometry, _form(inputs), tile_of(inputs.slice.prune))
    known = inputs.slice.benchmark.latency_table
    return depends | ({"table": folder_digest(Path(known)) if Path(known).is_dir() else None} if known else {})


def time_blocks(inputs: Inputs[Recipe], out: Path) -> None:
    """How long blocks of every size take, measured or taken over."""
    known, tile = inputs.slice.benchmark.latency_table, tile_of(inputs.slice.prune)
    if known:
        adopt(Path(known), inputs.folder(SOURCE), _form(inputs), tile, out, inputs.events)
    else:
        latency_table(inputs.folder(SOURCE), _form(inputs), tile, out, inputs.events)


def _form(inputs: Inputs[Recipe]) -> Form:
    recipe = inputs.slice
    return Form(recipe.export, recipe.build, recipe.benchmark, inputs.options)


def first_shot(recipe: PruneSlice, source: Path) -> dict[str, Any] | None:
    """What of the steps decides what is measured once for all budgets; None where nothing is."""
    return measured_part(recipe, Checkpoint(source).geometry)


def part_key(inputs: Inputs[PruneSlice]) -> dict[str, Any]:
    """What is collected, and of which windows."""
    return {"recipe": statistics_part(inputs.slice), "part": list(_part(inputs))}


def measure_shard(inputs: Inputs[PruneSlice], out: Path) -> None:
    """What one part of the calibration windows gives; ``measure_once`` merges the parts."""
    source, texts = inputs.folder(SOURCE), inputs.folder(TEXT)
    measure_part(source, texts, inputs.slice, _part(inputs), inputs.options, out, inputs.events)


def _part(inputs: Inputs[PruneSlice]) -> tuple[int, int]:
    part = present(inputs.name.part)
    return part.number, part.count


def measure_once(inputs: Inputs[PruneSlice], out: Path) -> None:
    """What the first shot measures, where it can be kept apart from the budget: another budget finds it there."""
    parts = [made.folder for name, made in inputs.artefacts.items() if name.part]
    measure(inputs.folder(SOURCE), inputs.folder(TEXT), inputs.slice, inputs.options, out, inputs.events, parts)


def plan_key(inputs: Inputs[Recipe]) -> dict[str, Any]:
    """The steps; and for a target the precision, since it bounds bytes."""
    recipe = inputs.slice
    targets = any(step.target for step in recipe.prune.steps)
    precision = recipe.export and recipe.export.precision
    return {"recipe": recipe.prune.model_dump(mode="json")} | ({"precision": precision} if targets else {})


def decide(inputs: Inputs[Recipe], out: Path) -> None:
    """The plan. What a search has judged survives a kill, and goes when the plan stands."""
    recipe, work, measured = inputs.slice, inputs.states or work_beside(out), inputs.maybe(MEASURED)
    prune(inputs.folder(SOURCE), inputs.folder(TEXT), recipe.prune, inputs.options, out, inputs.events, measured, _consumer(inputs), work)
    shutil.rmtree(work, ignore_errors=True)


def _consumer(inputs: Inputs[Recipe]) -> Consumer:
    config = {} if inputs.slice.export else Checkpoint(inputs.folder(SOURCE)).config  # a graph's numbers have a width of their own
    return consumer_of(inputs.slice, inputs.maybe(LATENCY), config)


def train(inputs: Inputs[RecoverSlice], out: Path) -> None:
    """The smaller checkpoint, trained. The dense one is read where the recipe says so."""
    dense, states = inputs.maybe(SOURCE) or Path(), inputs.states or work_beside(out)
    recover(dense, inputs.folder(SMALLER), inputs.folder(TEXT), inputs.slice, inputs.options, out, states, inputs.events)


def judge(inputs: Inputs[EvaluateSlice], out: Path) -> None:
    """The perplexity of one model; of a smaller one also how near its predictions are to the dense one's."""
    smaller = inputs.maybe(RECOVERED, SMALLER)
    model, dense = (inputs.folder(SOURCE), None) if smaller is None else (smaller, inputs.maybe(SOURCE))
    evaluate(model, inputs.folder(TEXT), inputs.slice, inputs.options, out, inputs.events, dense)


def judge_counts(inputs: Inputs[Recipe], out: Path) -> None:
    """Other counts of experts than the plan's."""
    source, texts, plan = map(inputs.folder, (SOURCE, TEXT, PLAN))
    curve(source, texts, plan, inputs.slice.curve, inputs.slice.evaluate, inputs.options, out, inputs.events)


def write_graph(inputs: Inputs[ExportSlice], out: Path) -> None:
    """The checkpoint in the form that the recipe names."""
    write = export_openvino if inputs.slice.format == "openvino" else export
    write(inputs.checkpoint, inputs.slice, inputs.options, out, inputs.events)


def is_timed(case: StageCase) -> bool:
    """Whether this form is what the benchmark times, and not the checkpoint's to within a thousandth."""
    return evaluated(case.recipe, case.lane.checkpoint) == case.name


def read_by_graph(inputs: Inputs[EvaluateSlice], graph: Path, out: Path) -> None:
    """The evaluation text, read in ONNX Runtime by the graph in a folder; its own tokenizer where no checkpoint is given."""
    checkpoint = inputs.maybe(SOURCE, SMALLER, RECOVERED)
    read = evaluate_openvino if (graph / OPENVINO).is_file() else evaluate_graph
    read(checkpoint, graph, inputs.folder(TEXT), inputs.slice, inputs.options, out, inputs.events)


def engine_recipe(recipe: Recipe) -> BuildInput:
    """What a build reads."""
    return BuildInput(present(recipe.build), tuple(EngineRequest(one.prompt, one.output, one.batch) for one in recipe.benchmark.workloads))


def engine_key(inputs: Inputs[BuildInput]) -> dict[str, Any]:
    """How it is built, and for which requests."""
    return {"recipe": inputs.slice.recipe.model_dump(mode="json"), "requests": [list(request) for request in inputs.slice.requests]}


def compile_engine(inputs: Inputs[BuildInput], out: Path) -> None:
    """The engine of one model."""
    onnx, (recipe, requests) = inputs.folder(export_of(inputs.lane)), inputs.slice
    texts, cache = inputs.maybe(TEXT), inputs.timing_cache
    build(onnx, recipe, requests, inputs.options, out, inputs.events, texts=texts, timing_cache=cache)


def benchmark_key(inputs: Inputs[Recipe]) -> dict[str, Any]:
    """What is timed how, and what is printed beside it."""
    return {"recipe": inputs.slice.benchmark.model_dump(mode="json"), "accuracy": _accuracy(inputs)}


def time_both(inputs: Inputs[Recipe], out: Path) -> None:
    """Both models side by side."""
    dense, pruned = (inputs.folder(timed(inputs.slice, lane)) for lane in LANES)
    benchmark(dense, {str(PRUNED): pruned}, inputs.slice.benchmark, inputs.options, out, inputs.events, _accuracy(inputs))


def _accuracy(inputs: Inputs[Recipe]) -> dict[str, float]:
    folders = {str(lane): inputs.folder(evaluated(inputs.slice, lane)) for lane in LANES}
    return {name: read_json(folder / RESULT)["perplexity"] for name, folder in folders.items()}


def draw(inputs: Inputs[Recipe], out: Path) -> None:
    """The page, its Markdown and its data."""

    def folders(lane: Lane) -> Folders:
        made, read = (inputs.folder(name(inputs.slice, lane)) for name in (origin, evaluated))
        return Folders(made, inputs.maybe(export_of(lane)), read)

    texts, plan, timings = map(inputs.folder, (TEXT, PLAN, TIMINGS))
    consumer = _consumer(inputs)
    models: dict[Role, Folders] = {"dense": folders(DENSE), "pruned": folders(PRUNED)}
    write_report(collect(inputs.slice, inputs.command, texts, plan, models, timings, inputs.artefacts, inputs.rounds, consumer), out)


def ship(inputs: Inputs[Recipe], out: Path) -> None:
    """The folder to ship, a level below the artefact: its records have no place among the files that a manifest sums."""
    parts = PackageParts(
        model=inputs.folder(origin(inputs.slice, PRUNED)),
        onnx=inputs.maybe(export_of(PRUNED)),
        plan=inputs.folder(PLAN),
        report=inputs.folder(REPORT),
        recipe=recipe_text(inputs.slice),
        command=inputs.command,
        options=inputs.options,
        engine=inputs.maybe(engine_of(PRUNED)),
    )
    (out / SHIPPED).mkdir()
    package(parts, inputs.slice.package, out / SHIPPED, inputs.events)
