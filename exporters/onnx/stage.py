"""The export stage: a checkpoint into a folder that ONNX Runtime and onnxruntime-genai open, gated."""

from __future__ import annotations

import gc
from pathlib import Path

from exporters.folder import CONFIG, EXPORT
from exporters.held import is_mapped
from exporters.onnx.files import save_graph
from exporters.onnx.gate.gate import gate_onnx
from exporters.onnx.gate.perplexity import calibration_windows
from exporters.onnx.lowering.config import context_length, stock_config
from exporters.onnx.lowering.fused import fused_obstacle, lower_fused
from exporters.onnx.lowering.last_position import keep_last_position
from exporters.onnx.lowering.mixtures import check_mixture
from exporters.onnx.lowering.portable import give_back_weights, lower_portable
from exporters.onnx.lowering.precision import NUMBERS, bits_by_operator, check_budget, check_precision, provider_obstacle
from exporters.onnx.lowering.quantise import quantised_graph
from exporters.onnx.running.genai import fused_positions, write_genai_config
from exporters.onnx.runtime import has_genai, needs_runtime
from exporters.positions import say_bound
from exporters.recipe import ExportSlice
from exporters.text.tokens import check_text
from pipeline.architecture.obstacles import check_graph
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import profile_of
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.memory import usable_memory
from pipeline.common.options import RunOptions
from pipeline.sources.companions import copy_companions
from pipeline.tensors.mapped import MappedTensors


def export(checkpoint: Path, recipe: ExportSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Writes model.onnx, its weights, genai_config.json, what comes along with the checkpoint and gate.json into ``out``.

    Where blocks are alike, config.json is the checkpoint's: libraries of Hugging Face open no folder without one, and could not read
    another profile's. Weights of any float type become fp32, which changes no value, and then what ``recipe.precision`` says.

    Raises:
        TrimlineError: the lowering does not know this model, or what it needs is not installed.
        GateError: the graph does not compute what the checkpoint computes.
    """
    needs_runtime()
    check_precision(recipe.precision, options.device)
    options.apply()
    source = Checkpoint(checkpoint)
    _check(source)
    check_mixture(source.geometry, recipe.precision, 1, usable_memory())
    source.say_text_only(events, "the graph")
    check_text(source, options.trust_remote_code)
    say_bound(int(stock_config(source).max_position_embeddings), events)
    lowering = choose_lowering(source, recipe, options, events)
    check_budget(source, lowering, recipe.precision, options)
    keep = MappedTensors(out).keep if is_mapped(source, options) else None
    with events.progress("exporting to ONNX", 2) as advance:
        if lowering == "fused":
            graph = lower_fused(source, recipe.precision, events, keep)
        else:
            graph = lower_portable(source, recipe.precision, events, keep, trust_remote_code=options.trust_remote_code)
        if recipe.logits == "last":
            keep_last_position(graph)
        left: list[str] = []
        if lowering == "portable" and NUMBERS[recipe.precision].quantised:
            seen = calibration_windows(source, options.trust_remote_code) if recipe.precision == "int8" else None
            graph, left = quantised_graph(graph, recipe.precision, out, seen, options.threads)
            if left:
                events.note(f"{len(left)} products stay in fp32: one int8 scale would round their activations to nothing")
        advance(1)
        save_graph(graph, out, lowering)
        copy_companions(source.folder, out, events)
        write_json(out / CONFIG, source.config)
        if profile_of(source.config) is Profile.UNIFORM:
            write_json(out / "config.json", source.config)
        bits = bits_by_operator(graph, recipe.precision, source.geometry, left)
        form = {"lowering": lowering, "precision": recipe.precision, "logits": recipe.logits}
        write_json(out / EXPORT, form | ({"bits": bits} if bits else {}))
        write_genai_config(source, lowering, out)
        advance(1)
    give_back_weights(graph)  # before the gate opens what was written
    del graph, keep
    gc.collect()  # nodes and values refer to each other
    gate_onnx(checkpoint, out, recipe, options, events)


def choose_lowering(source: Checkpoint, recipe: ExportSlice, options: RunOptions, events: Events) -> str:
    """``fused`` or ``portable``."""
    lowering, shorter = str(recipe.lowering), _shorter(source)
    if lowering == "auto":
        obstacle = fused_obstacle(source) or provider_obstacle(recipe.precision, options.device) or shorter
        if obstacle is None and not has_genai():
            obstacle = "onnxruntime-genai, which builds the fused graph, is not installed"
        lowering = "fused" if obstacle is None else "portable"
        if obstacle is not None:
            events.note(f"portable lowering, because {obstacle}")
    elif lowering == "fused" and shorter is not None:
        events.note(shorter)
    return lowering


def _shorter(source: Checkpoint) -> str | None:
    """Half a sentence on why the fused graph takes shorter texts than the portable one; None where it does not."""
    most, positions = fused_positions(source), context_length(source)
    if most == positions:
        return None
    return f"a fused graph ends after {most} of this model's {positions} tokens, beyond which its rotary embedding turns other angles"


def _check(source: Checkpoint) -> None:
    check_graph(source.geometry.family)
    if not any(block.kv_groups for block in source.geometry.blocks):
        raise TrimlineError(f"No block of {source.folder} has attention left, so there is no cache to export.", "Keep one.")
    source.demand_no_doubt()
    source.check_finite()
