"""The build stage: a portable ONNX folder into a folder with an engine and everything that is known of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporters.folder import CONFIG, EXPORT, GENAI_CONFIG
from exporters.onnx.files import GRAPH, WEIGHTS
from exporters.onnx.running.shapes import DEFAULT_REQUESTS, EngineRequest, graph_inputs, profiles_for
from exporters.onnx.sparsity import check_two_four, load_graph, weight_patterns
from exporters.recipe import BuildSlice
from exporters.tensorrt.builders import Builder, demand_buildable, demand_builder, installed_version
from exporters.tensorrt.child import build_in_child, log_lines, warnings_of
from exporters.tensorrt.folder import ENGINE, INSPECTOR, LOG, QDQ, RECORD, SECONDS, TIMINGS
from exporters.tensorrt.gate import gate_engine
from exporters.tensorrt.qdq import quantise
from exporters.tensorrt.verdict import SparseProof, judge, read_inspector, read_log
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.sources.companions import copy_companions

NOT_RUN = "built, not run"
CARRIED = (CONFIG, EXPORT, GENAI_CONFIG)


def build(
    onnx: Path,
    recipe: BuildSlice,
    requests: Sequence[EngineRequest],
    options: RunOptions,
    out: Path,
    events: Events,
    *,
    texts: Path | None = None,
    timing_cache: Path | None = None,
) -> None:
    """Writes model.engine, build.json, build.log, and where there is a GPU layers.json, timing.cache and gate.json.

    Args:
        onnx: a folder that the export stage wrote with the portable lowering.
        recipe: builder, sparsity, precision.
        requests: that the engine must serve; they make its profiles.
        options: threads, of the graph that the engine is compared with, and the memory that must hold the graph's weights.
        out: empty folder.
        events: progress.
        texts: folder with calibration.txt and evaluation.txt; int8 needs it.
        timing_cache: kernel timings to start from, and to add to: a second build of a like model is quicker.

    Raises:
        TrimlineError: the builder cannot work here or refuses the graph, memory does not hold its weights, 2:4 is required and the graph is not, or the timings
            cannot be kept where they should.
        GateError: the engine does not compute what the graph computes, or quantising costs too much.
    """
    builder = demand_builder(recipe.builder)
    _check_timing_cache(timing_cache)
    graph, quality = _demand_portable(onnx), None
    _demand_memory(graph, options)
    if recipe.precision == "int8":
        quality = quantise(onnx, recipe, options, out / QDQ, events, texts=texts)
        graph = out / QDQ / GRAPH
    sparsity = check_two_four(list(weight_patterns(graph)))
    gpus = cuda_devices() or []
    request = _request(builder, recipe, graph, requests or DEFAULT_REQUESTS, out, sparse=_wants_sparse(recipe, sparsity, graph), gpus=gpus)
    found = _compiled(request, out, events, timing_cache)
    proof = _proof(request, found, out)
    events.note(f"engine of {found['bytes']:,} bytes; sparse kernels: {proof.verdict} ({proof.why})")
    write_json(out / SECONDS, found["seconds"])  # what is measured stands apart
    _carry(onnx, out, recipe, events)
    record = _record(builder, recipe, found, request, gpus) | {"two_four": sparsity, "sparse_kernels": proof.as_record(), "int8": quality}
    record |= {"log": LOG, "warnings": warnings_of(out / LOG), "run": {"run": False, "why": NOT_RUN, "proves": builder.proves}}
    write_json(out / RECORD, record)
    if request["inspect"]:
        gate_engine(graph, out, requests or DEFAULT_REQUESTS, options, events)
        write_json(out / RECORD, record | {"run": {"run": True, "why": "", "proves": builder.proves}})
    else:
        events.note(f"{NOT_RUN}: {builder.proves}")


def _request(
    builder: Builder, recipe: BuildSlice, graph: Path, requests: Sequence[EngineRequest], out: Path, *, sparse: bool, gpus: list[str]
) -> dict[str, Any]:
    """What the building process is asked for."""
    return {
        "builder": builder.name,
        "onnx": str(graph.resolve()),
        "engine": str((out / ENGINE).resolve()),
        "inspector": str((out / INSPECTOR).resolve()),
        "timing_cache": str((out / TIMINGS).resolve()),
        "sparse": sparse,
        "inspect": bool(gpus) and builder.needs_gpu,
        "level": recipe.level,
        "profiles": [profile.as_record() for profile in profiles_for(graph_inputs(graph), requests)],
        "capabilities": [[int(part) for part in capability.split(".")] for capability in recipe.compute_capabilities],
    }


def _compiled(request: dict[str, Any], out: Path, events: Events, timing_cache: Path | None) -> dict[str, Any]:
    """Builds in a process of its own, from the kernel timings of earlier builds and adding to them; what it says of the engine."""
    cache = out / TIMINGS
    if timing_cache and timing_cache.is_file():
        shutil.copyfile(timing_cache, cache)
    with events.progress(f"building with {request['builder']}", 1) as advance:
        found = build_in_child(request, out / LOG)
        advance(1)
    if timing_cache and cache.is_file():
        _keep(cache, timing_cache)
    return found


def _check_timing_cache(timing_cache: Path | None) -> None:
    """Whether kernel timings can be kept there; said before a build that takes minutes."""
    if timing_cache is None:
        return
    if timing_cache.is_dir():
        raise TrimlineError(f"{timing_cache} is a folder, and kernel timings are kept in a file.", "Name a file in it.")
    if not timing_cache.parent.is_dir():
        raise TrimlineError(f"There is no folder {timing_cache.parent} to keep kernel timings in.", "Make it, or name another file.")


def _keep(made: Path, kept: Path) -> None:
    """Copies a file so that another build never reads half of it."""
    with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=f".{kept.name}-", delete=False) as partial:
        beside = Path(partial.name)
    try:
        shutil.copyfile(made, beside)
        beside.replace(kept)
    finally:
        beside.unlink(missing_ok=True)


def _proof(request: dict[str, Any], found: dict[str, Any], out: Path) -> SparseProof:
    """Whether sparse kernels were chosen, from the builder's log and, where there is one, its layer information."""
    layers = (out / INSPECTOR).read_text(encoding="utf-8") if found["inspected"] else None
    return judge(request["sparse"], read_log(log_lines(out / LOG)), read_inspector(layers))


def _carry(onnx: Path, out: Path, recipe: BuildSlice, events: Events) -> None:
    """What a server and a benchmark want beside the engine: the tokenizer, sizes per block, the precision."""
    for name in CARRIED:
        if (onnx / name).is_file():
            shutil.copyfile(onnx / name, out / name)
    copy_companions(onnx, out, events)
    if recipe.precision == "int8":
        write_json(out / EXPORT, read_json(out / EXPORT) | {"precision": "int8"})


def _record(builder: Builder, recipe: BuildSlice, found: dict[str, Any], request: dict[str, Any], gpus: list[str]) -> dict[str, Any]:
    return {
        "builder": builder.name,
        "versions": {builder.name: found["version"], "polygraphy": installed_version("polygraphy")},
        "flags": found["flags"],
        "strongly_typed": True,
        "level": recipe.level,
        "precision": recipe.precision,
        "compute_capabilities": list(recipe.compute_capabilities),
        "gpus": gpus,
        "profiles": request["profiles"],
        "layers": found["layers"],
        "engine": ENGINE,
        "bytes": found["bytes"],
    }


def _demand_portable(folder: Path) -> Path:
    """The graph of an exported folder, where it is of standard operators and of a precision that engines are built from."""
    graph = folder / GRAPH
    if not graph.is_file():
        raise TrimlineError(f"There is no {GRAPH} in {folder}.", "Give a folder that `trimline export --lowering portable` wrote.")
    demand_buildable(str(read_json(folder / EXPORT).get("precision")), f"{folder} was exported")
    foreign = sorted({node.domain for node in load_graph(graph).graph.node} - {"", "ai.onnx"})
    if foreign:
        raise TrimlineError(
            f"{graph} holds operators of {', '.join(foreign)}, which TensorRT does not know.", "Export it with lowering: portable."
        )
    return graph


def _demand_memory(graph: Path, options: RunOptions) -> None:
    """TensorRT has all weights in the processor's memory while it builds."""
    weights = sum(path.stat().st_size for path in (graph, graph.with_name(WEIGHTS)) if path.is_file())
    share = replace(options, device="cpu").for_weights()
    if weights > share:
        raise TrimlineError(
            f"TensorRT builds with all weights in memory: {graph} has {weights / 2**30:.3g} GiB, and {share / 2**30:.3g} GiB may be taken.",
            "Give --memory more, or build on a machine that has it.",
        )


def _wants_sparse(recipe: BuildSlice, sparsity: dict[str, Any], graph: Path) -> bool:
    if recipe.sparsity == "require" and not sparsity["complies"]:
        shown = ", ".join(sparsity["others"][:3]) or "there is no weight to judge"
        raise TrimlineError(
            f"{sparsity['two_four']} of {sparsity['weights']} weights of {graph} are 2:4; not so are {shown}.",
            "Prune with pattern 2:4 (recipes/smaller-then-2-4.yaml), or use sparsity: auto.",
        )
    return recipe.sparsity != "off" and bool(sparsity["complies"])
