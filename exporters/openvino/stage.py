"""The export stage for OpenVINO: a checkpoint into a folder that openvino, openvino-genai and OpenVINO Model Server open, gated."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from exporters.folder import CONFIG, EXPORT
from exporters.held import is_mapped, too_large
from exporters.onnx.lowering.config import context_length, stock_config
from exporters.openvino.compress import GROUP, compress, halve
from exporters.openvino.files import FORMAT, MODEL
from exporters.openvino.gate import gate_openvino
from exporters.openvino.lowering import check_rotary, lower, name_by_order, with_attention
from exporters.openvino.runtime import NNCF, clash, needs_openvino, versions
from exporters.openvino.stateful import make_stateful
from exporters.openvino.text import write_tokenizer
from exporters.positions import say_bound
from exporters.recipe import ExportSlice
from exporters.text.tokens import check_text
from pipeline.architecture.obstacles import check_graph
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.sources.companions import copy_companions


def export_openvino(checkpoint: Path, recipe: ExportSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Writes openvino_model.xml and .bin, the tokenizer's graphs, config.json, what comes along with the checkpoint, and gate.json into ``out``.

    Raises:
        TrimlineError: openvino or, for int8 and int4, nncf is missing; OpenVINO cannot express the model.
        GateError: the graph does not compute what the checkpoint computes.
    """
    write_openvino(checkpoint, recipe, options, out, events)
    gc.collect()
    gate_openvino(checkpoint, out, recipe, options, events)


def write_openvino(checkpoint: Path, recipe: ExportSlice, options: RunOptions, out: Path, events: Events) -> None:
    """As ``export_openvino``, without the gate.

    Raises:
        TrimlineError: as ``export_openvino``.
    """
    check_packages(recipe)
    options.apply()
    source = Checkpoint(checkpoint)
    _check(source, options)
    source.say_text_only(events, "the graph")
    check_text(source, options.trust_remote_code)
    say_bound(int(stock_config(source).max_position_embeddings), events)
    with events.progress("exporting to OpenVINO", 2) as advance:
        form = _write_model(source, recipe, options, out)
        advance(1)
        copy_companions(source.folder, out, events)
        why = write_tokenizer(source, out, options.trust_remote_code)
        if why:
            events.note(f"no tokenizer for openvino-genai, which can be given token ids alone: {why}")
        for name in (CONFIG, "config.json"):
            write_json(out / name, source.config)
        write_json(out / EXPORT, form | {"positions": context_length(source)} | ({"no tokenizer": why} if why else {}))
        advance(1)


def check_packages(recipe: ExportSlice) -> None:
    """Whether what the export needs is installed, in versions that go together.

    Raises:
        TrimlineError: something is missing, or of another release.
    """
    needs_openvino(*([NNCF] if recipe.precision in ("int8", "int4") else []))
    if said := clash(versions()):
        raise TrimlineError(f"{said[:1].upper()}{said[1:]}.", "Install the same release of all of them: pip install 'trimline[openvino]'.")


def _check(source: Checkpoint, options: RunOptions) -> None:
    check_graph(source.geometry.family)
    if not with_attention(source):
        raise TrimlineError(f"No block of {source.folder} has attention left, so there is no cache to export.", "Keep one.")
    source.demand_no_doubt()
    source.check_finite()
    check_rotary(source)
    if is_mapped(source, options):
        raise TrimlineError(
            f"OpenVINO's graph is traced with the model in memory: {too_large(source)}.", "Export to ONNX, or allow more --memory."
        )


def _write_model(source: Checkpoint, recipe: ExportSlice, options: RunOptions, out: Path) -> dict[str, Any]:
    """The graph and its weights; what export.json says of them."""
    import openvino as ov

    model = load_model(source.folder, dtype=torch.float32, device="cpu", trust_remote_code=options.trust_remote_code)
    graph = lower(source, model)
    make_stateful(graph, with_attention(source))
    form: dict[str, Any] = {"format": FORMAT, "lowering": FORMAT, "precision": recipe.precision, "logits": "last"}
    if recipe.precision in ("int8", "int4"):
        graph = compress(graph, recipe.precision, recipe.group_size)
        form |= {"group_size": recipe.group_size or GROUP} if recipe.precision == "int4" else {}
    elif recipe.precision == "fp16":
        halve(graph, model)
    name_by_order(graph, "decoder")
    try:
        ov.save_model(graph, out / MODEL, compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        raise TrimlineError(f"{out / MODEL} could not be written: {error}.", "Free some space and run it again.") from error
    return form
