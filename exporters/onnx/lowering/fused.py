"""The fused lowering: GroupQueryAttention and friends, which ONNX Runtime runs fastest.

onnxruntime-genai's model builder emits these operators one block at a time, but assumes that all blocks are alike
and loads a whole transformers model first. Here its family class is given each block's own sizes before it emits
that block, skips sublayers that are absent, and is handed tensors straight from the checkpoint's memory map
(``exporters.onnx.lowering.per_block``).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from types import ModuleType
from typing import Any

import onnx_ir as ir
from transformers import PretrainedConfig

from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.per_block import Keep, PerBlock
from exporters.onnx.lowering.precision import NUMBERS
from exporters.onnx.lowering.rotary import rotary_kinds, rotary_obstacle, rotary_tables
from exporters.onnx.lowering.windows import FULL, SLIDING, attention_windows, window_obstacle
from exporters.onnx.runtime import has_genai, needs_builder
from exporters.recipe import Precision
from pipeline.architecture.families import Sublayer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events

ACTIVATIONS = {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2"}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps")  # what configs call it; the builder knows the first, else takes 1e-6
WITHOUT_FFN_BIASES = {"NemotronModel"}  # builder's classes that leave them out


def fused_obstacle(checkpoint: Checkpoint) -> str | None:
    """Why the fused lowering would not compute what this checkpoint computes; None where it does."""
    geometry = checkpoint.geometry
    family = geometry.family
    if family.onnx_builder is None:
        return family.onnx_obstacle or f"onnxruntime-genai's builder knows no {family.model_type}"
    if has_genai() and not hasattr(builder_classes(), family.onnx_builder):
        return f"the installed onnxruntime-genai's builder has no class {family.onnx_builder}"
    config = stock_config(checkpoint)
    if (activation := getattr(config, family.activation_key)) not in ACTIVATIONS:
        return f"its activation is {activation!r}"
    biased = any(linear.sublayer is Sublayer.FFN and geometry.has_bias(linear) for linear in family.linears)
    if biased and family.onnx_builder in WITHOUT_FFN_BIASES:
        return f"its FFN has biases, which the builder's {family.onnx_builder} leaves out"
    return window_obstacle(config) or rotary_obstacle(family, config)


def lower_fused(checkpoint: Checkpoint, precision: Precision, events: Events, keep: Keep | None = None) -> ir.Model:
    """The graph of a checkpoint for ONNX Runtime; weights are read when the graph is saved, or quantised one by one.

    Inputs ``input_ids`` and ``attention_mask`` (batch, past + sequence), int64; per block with attention
    ``past_key_values.{i}.key``/``.value`` (batch, KV heads of that block, past, head_dim); outputs ``logits`` (batch,
    sequence, vocabulary) and ``present.{i}.key``/``.value``. Rows are padded on the right only. Where queries and keys are turned
    outside of the attention, ``position_ids`` (batch, sequence) are an input too.

    Args:
        checkpoint: what becomes a graph.
        precision: of its weights.
        events: what the builder says.
        keep: takes what is made of weights now (quantised ones, packed ones) out of memory; without it they stay there.

    Raises:
        TrimlineError: the lowering cannot express this checkpoint; onnxruntime-genai is not installed.
    """
    if (obstacle := fused_obstacle(checkpoint)) is not None:
        raise TrimlineError(f"The fused lowering cannot express {checkpoint.folder}: {obstacle}.", "Use lowering: portable (or auto).")
    needs_builder()
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), tempfile.TemporaryDirectory() as cache:
        graph: ir.Model = _builder(checkpoint, precision, cache, keep or _as_it_is).build(checkpoint)
    events.note("built the fused graph", builder=heard.getvalue().splitlines())
    return graph


def _as_it_is(tensor: Any) -> Any:
    return tensor


def builder_classes() -> ModuleType:
    """The module that holds the classes of onnxruntime-genai's builder."""
    importlib.import_module("onnxruntime_genai.models")  # puts the builder's own helpers on the import path
    return importlib.import_module("onnxruntime_genai.models.builders")


def _builder(checkpoint: Checkpoint, precision: Precision, cache: str, keep: Keep) -> Any:
    geometry = checkpoint.geometry
    base = getattr(builder_classes(), str(geometry.family.onnx_builder))
    config = stock_config(checkpoint)
    kinds = rotary_kinds(config)
    tables = {kind: rotary_tables(geometry.family, config, kind) for kind in sorted(set(kinds))}
    own = {"geometry": geometry, "kinds": kinds, "tables": tables, "keep": staticmethod(keep)}
    kind = type("PerBlockBuilder", (PerBlock, base), own)
    numbers = NUMBERS[precision]
    # Caches have the length of the text in every block: a program that fills them need not know of windows.
    options = {"hf_token": False, "hf_remote": False, "windowed_kv_cache": False, **numbers.options}
    return kind(_builder_config(checkpoint, config), numbers.io, numbers.weights, "cpu", cache, options)


def _builder_config(checkpoint: Checkpoint, config: PretrainedConfig) -> PretrainedConfig:
    """The stock config with what the builder reads, for every family by the same names."""
    geometry, windows = checkpoint.geometry, attention_windows(checkpoint, config)
    family = geometry.family
    config.architectures = [f"{family.class_prefix}ForCausalLM"]
    config.layer_types = [FULL if window is None else SLIDING for window in windows]
    config.sliding_window = next((window for window in windows if window is not None), None)
    config.intermediate_size = max(1, *(block.ffn for block in geometry.blocks))
    config.hidden_activation = getattr(config, family.activation_key)  # which counts before hidden_act there
    config.rms_norm_eps = next((getattr(config, key) for key in EPSILONS if hasattr(config, key)), 1e-6)
    config.rope_local_base_freq = None  # Gemma3Model asks for it; tables are ours
    return config
