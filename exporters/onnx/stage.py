"""The export stage: a checkpoint into a folder that ONNX Runtime and onnxruntime-genai open, gated."""

from __future__ import annotations

from pathlib import Path

from exporters.onnx.files import copy_tokenizer, save_graph
from exporters.onnx.fused import fused_obstacle, lower_fused
from exporters.onnx.gate import gate_onnx
from exporters.onnx.genai import write_genai_config
from exporters.onnx.portable import lower_portable
from exporters.onnx.runtime import has_genai, needs_runtime
from exporters.recipe import ExportSlice
from pipeline.checkpoint import Checkpoint, write_json
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions


def export(checkpoint: Path, recipe: ExportSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Writes model.onnx, its weights, genai_config.json, the tokenizer's files and gate.json into ``out``.

    Weights of any float type become fp32; their values do not change by that.

    Raises:
        TrimlineError: the lowering does not know this model, or what it needs is not installed.
        GateError: the graph does not compute what the checkpoint computes.
    """
    needs_runtime()
    options.apply()
    source = Checkpoint(checkpoint)
    _check(source)
    lowering = choose_lowering(source, recipe, events)
    with events.progress("exporting to ONNX", 2) as advance:
        if lowering == "fused":
            graph = lower_fused(source, recipe.logits, events)
        else:
            graph = lower_portable(source, events, trust_remote_code=options.trust_remote_code)
        advance(1)
        save_graph(graph, out, lowering)
        copy_tokenizer(source.folder, out)
        write_json(out / "checkpoint_config.json", source.config)  # sizes per block, for whoever measures the graph
        write_json(out / "export.json", {"lowering": lowering, "precision": recipe.precision, "logits": recipe.logits})
        write_genai_config(source, lowering, out)
        advance(1)
    gate_onnx(checkpoint, out, options, events)


def choose_lowering(source: Checkpoint, recipe: ExportSlice, events: Events) -> str:
    """``fused`` or ``portable``.

    Raises:
        TrimlineError: last logits are asked for, and the model needs the portable lowering.
    """
    lowering: str = recipe.lowering
    if lowering == "auto":
        obstacle = fused_obstacle(source)
        if obstacle is None and not has_genai():
            obstacle = "onnxruntime-genai, which builds the fused graph, is not installed"
        lowering = "fused" if obstacle is None else "portable"
        if obstacle is not None:
            events.note(f"portable lowering, because {obstacle}")
    if lowering == "portable" and recipe.logits == "last":
        raise TrimlineError("The portable lowering gives logits of all positions.", "Use logits: all, or lowering: fused.")
    return lowering


def _check(source: Checkpoint) -> None:
    if not any(block.kv_groups for block in source.geometry.blocks):
        raise TrimlineError(f"No block of {source.folder} has attention left, so there is no cache to export.", "Keep one.")
    if "quantization_config" in source.config:
        raise TrimlineError(f"{source.folder} is quantised.", "Export the unquantised checkpoint.")
