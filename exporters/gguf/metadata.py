"""The keys of a GGUF that say what llama.cpp computes: sizes, norms, rotary embedding, windows, scales."""

from __future__ import annotations

from typing import Any

import gguf
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from exporters.gguf.experts import ffn_length, write_experts
from exporters.gguf.tensors import XIELU, query_heads, written_geometry
from exporters.gguf.tokenizer import strips_like_phi3
from exporters.positions import promised, say_bound
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.rebuild.gguf.settings import RAMP, GgufSettings
from pipeline.rebuild.gguf_form import DECI, GgufForm

FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
# llama.cpp looks for this in the model's name, and then drops spaces behind special tokens; other names must not hold it.
PHI3_NAME = "Phi-3"
EPSILON = 1e-5  # of norms whose model states none


def write_metadata(writer: gguf.GGUFWriter, source: Checkpoint, form: GgufForm, precision: str, events: Events) -> None:
    """Adds every key but the tokenizer's."""
    geometry = written_geometry(source.geometry, form)
    label = gguf.size_label(geometry.language_parameters(), geometry.language_parameters(), 0, 0)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{PHI3_NAME if strips_like_phi3(source.folder) else title(geometry)} {label}")
    writer.add_size_label(label)
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(geometry.vocab)
    writer.add_context_length(context_length(form, events))
    writer.add_embedding_length(geometry.hidden)
    writer.add_block_count(len(geometry.blocks))
    (writer.add_layer_norm_eps if form.row.layer_norm else writer.add_layer_norm_rms_eps)(epsilon(form))
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    _block_sizes(writer, geometry, form)
    if form.row.experts is not None and geometry.family.mixture is not None:
        write_experts(writer, geometry, form.row.experts, form.settings.values)
    _rotary(writer, form)
    _windows(writer, form)
    for name, key in form.row.keys.items():
        if (value := form.settings.setting(key)) is not None:
            writer.add_float32(f"{form.arch}.{name}", float(value))
    _carried(writer, source, form)


def title(geometry: Geometry) -> str:
    """A name for people, which holds nothing that llama.cpp acts on."""
    return geometry.family.class_prefix.replace("Phi3", "Phi 3")


def epsilon(form: GgufForm) -> float:
    """Of every norm."""
    return float(form.settings.values[form.row.epsilon]) if form.row.epsilon else EPSILON


def rope_factors(source: Checkpoint, settings: GgufSettings) -> torch.Tensor | None:
    """What each rotary frequency is divided by, shape (head_dim / 2,), for Llama 3's scaling; None without it."""
    if settings.rotary.kind != "llama3":
        return None
    head_dim = source.geometry.head_dim
    given = {key: settings.values[key] for key in ("rope_parameters", "max_position_embeddings")}
    made: Any = CONFIG_MAPPING[source.geometry.family.model_type]
    stock = made(**given, head_dim=head_dim)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](stock, torch.device("cpu"))
    plain = 1.0 / settings.rotary.base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return plain / scaled


def context_length(form: GgufForm, events: Events) -> int:
    """Positions that the file promises: those of the model, or its sliding window, beyond which llama.cpp would compute another thing."""
    stated = int(form.settings.values["max_position_embeddings"])
    say_bound(stated, events)
    positions = promised(stated)
    window = form.settings.window
    if form.windowed or not window:
        return positions
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
    writer.add_feed_forward_length(ffn_length(geometry))
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(groups[0])


def _rotary(writer: gguf.GGUFWriter, form: GgufForm) -> None:
    rotary = form.settings.rotary
    writer.add_rope_dimension_count(rotary.turned)
    writer.add_rope_freq_base(rotary.base)
    if rotary.kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(rotary.kind))
    writer.add_rope_scaling_factor(rotary.factor)
    if rotary.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotary.original)
        writer.add_rope_scaling_attn_factors(rotary.attention)
    if rotary.ramp != RAMP:
        writer.add_rope_scaling_yarn_beta_fast(rotary.ramp[0])
        writer.add_rope_scaling_yarn_beta_slow(rotary.ramp[1])


def _windows(writer: gguf.GGUFWriter, form: GgufForm) -> None:
    if not form.windowed or form.row.windows is None:
        return
    writer.add_sliding_window(form.settings.window)
    writer.add_sliding_window_pattern([form.settings.windows[number] for number in form.kept])
    if form.row.windows.own_base:
        writer.add_rope_freq_base_swa(form.settings.in_windows.base)


def _carried(writer: gguf.GGUFWriter, source: Checkpoint, form: GgufForm) -> None:
    family = source.geometry.family
    for carried in family.carried:
        if carried.name in XIELU:
            values = [float(source.tensor(family.module(number, carried.name))) for number in form.kept]
            getattr(writer, f"add_xielu_{XIELU[carried.name]}")(values)
