"""The keys of a GGUF that say what llama.cpp computes: sizes, norms, rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exporters.gguf.tensors import query_heads, written_geometry
from exporters.gguf.tokenizer import strips_like_phi3
from exporters.positions import promised, say_bound
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.stock import has_sliding_window
from pipeline.common.events import Events
from pipeline.rebuild.gguf_form import DECI, GgufForm, rope_type

FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
# llama.cpp looks for this in the model's name, and then drops spaces behind special tokens; other names must not hold it.
PHI3_NAME = "Phi-3"
ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings", "rms_norm_eps")


def write_metadata(writer: gguf.GGUFWriter, source: Checkpoint, form: GgufForm, precision: str, events: Events) -> None:
    """Adds every key but the tokenizer's."""
    geometry, stock = written_geometry(source.geometry, form), stock_config(source)
    label = gguf.size_label(geometry.total_parameters(), geometry.total_parameters(), 0, 0)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{PHI3_NAME if strips_like_phi3(source.folder) else title(geometry)} {label}")
    writer.add_size_label(label)
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(geometry.vocab)
    writer.add_context_length(context_length(source, events))
    writer.add_embedding_length(geometry.hidden)
    writer.add_block_count(len(geometry.blocks))
    writer.add_layer_norm_rms_eps(stock.rms_norm_eps)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    _block_sizes(writer, geometry, form)
    _rotary(writer, geometry, stock.rope_parameters)


def title(geometry: Geometry) -> str:
    """A name for people, which holds nothing that llama.cpp acts on."""
    return geometry.family.class_prefix.replace("Phi3", "Phi 3")


def rope_factors(source: Checkpoint) -> torch.Tensor | None:
    """What each rotary frequency is divided by, shape (head_dim / 2,), for Llama 3's scaling; None without it."""
    if rope_type(source.config) != "llama3":
        return None
    stock, head_dim = stock_config(source), source.geometry.head_dim
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](stock, torch.device("cpu"))
    plain = 1.0 / stock.rope_parameters["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return plain / scaled


def stock_config(source: Checkpoint) -> Any:
    """The stock config with this model's norms and rotary embedding, and the defaults of what its config.json leaves out."""
    given = {key: source.config[key] for key in ROTARY if source.config.get(key) is not None}
    made: Any = CONFIG_MAPPING[source.geometry.family.model_type]
    return made(**given, head_dim=source.geometry.head_dim)


def context_length(source: Checkpoint, events: Events) -> int:
    """Positions that the file promises: those of the model, or its sliding window, beyond which llama.cpp would compute another thing."""
    stated = int(stock_config(source).max_position_embeddings)
    say_bound(stated, events)
    positions = promised(stated)
    if not has_sliding_window(source.geometry.family, source.config):
        return positions
    stock = CONFIG_MAPPING[source.geometry.family.model_type]()
    window = int(source.config.get("sliding_window") or stock.sliding_window or positions)
    if window < positions:
        events.note(f"llama.cpp has no sliding window for this model: the file says {window} positions, within which both are the same")
    return min(window, positions)


def _block_sizes(writer: gguf.GGUFWriter, geometry: Geometry, form: GgufForm) -> None:
    ffn = [block.ffn for block in geometry.blocks]
    heads = [query_heads(geometry, number) for number in range(len(geometry.blocks))]
    groups = [block.kv_groups for block in geometry.blocks]
    if form.arch == DECI:
        writer.add_feed_forward_length(ffn)
        writer.add_head_count(heads)
        writer.add_head_count_kv(groups)
        return
    writer.add_feed_forward_length(ffn[0])
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(groups[0])


def _rotary(writer: gguf.GGUFWriter, geometry: Geometry, rotary: Mapping[str, Any]) -> None:
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_rope_freq_base(float(rotary["rope_theta"]))
    if rotary.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rotary["factor"]))
