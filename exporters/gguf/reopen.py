"""Reading a GGUF again without llama.cpp: by gguf's reader, tensor for tensor, and by transformers where that can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from exporters.gguf.computation import compare_computation
from exporters.gguf.experts import ffn_length
from exporters.gguf.metadata import context_length
from exporters.gguf.tensors import DTYPES, GgufTensor, entries, in_file, part_halves, written_geometry
from exporters.held import Reference
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.live.loading import quiet_transformers
from pipeline.rebuild.gguf.mixtures import NORMALISED
from pipeline.rebuild.gguf.settings import NEUTRAL
from pipeline.rebuild.gguf_form import DECI, GgufForm

# What a config says that transformers' reader may not have found in the file.
READ = (*NEUTRAL, "query_pre_attn_scalar", "attention_multiplier", "hidden_act", "hidden_activation", "no_rope_layers", "rope_parameters")
WINDOWED = ("layer_types", "sliding_window")
REPORT = "This is a fault of the conversion; please report it."


def compare_tensors(source: Checkpoint, reference: Reference, form: GgufForm, precision: str, path: Path) -> int:
    """Reads every tensor back and compares it, number by number, with the checkpoint's in the stored type.

    Args:
        source: the checkpoint, for its sizes.
        reference: as transformers loads it, for its numbers.
        form, precision: as it was written.
        path: the file.

    Returns:
        How many there are.

    Raises:
        GateError: a tensor is missing, of another shape, or holds another number; or a size in the keys is wrong.
    """
    reader = gguf.GGUFReader(path)
    _compare_sizes(source, form, reader)
    held = {tensor.name: tensor for tensor in reader.tensors}
    listed = list(entries(source, form, precision))
    unknown = set(held) - {entry.name for entry in listed} - {"rope_freqs.weight"}
    if unknown or len(listed) > len(held):
        raise GateError(f"{path} does not hold the checkpoint's tensors (unknown: {sorted(unknown)}).", REPORT)
    for entry in listed:
        if entry.name not in held or not torch.equal(_read(held[entry.name], entry, source), _expected(reference, entry)):
            raise GateError(f"{path}: {entry.name} is not the checkpoint's {entry.source or 'zeros'}.", REPORT)
    compare_computation(source.geometry, reference, form, reader)
    return len(listed)


def transformers_obstacle(source: Checkpoint, form: GgufForm, path: Path) -> str | None:
    """Why transformers' GGUF reader would not give this model; None where it does. It reads fewer keys than llama.cpp."""
    if form.arch == DECI:
        return "transformers' GGUF reader knows no architecture deci"
    family = source.geometry.family
    if form.arch == "llama" and any(source.geometry.has_bias(linear) for linear in family.linears):
        return "transformers' GGUF reader takes a llama to have no biases"
    if form.arch == "llama" and not form.permuted:
        return "transformers' GGUF reader takes the rotary embedding of a llama to turn halves of heads"
    if form.arch == "llama" and family.mixture is not None:
        return "transformers' GGUF reader takes a llama to have no experts"
    if form.settings.rotary.kind != "default":
        return "transformers' GGUF reader drops the scaling of rotary embeddings"
    try:
        with quiet_transformers():
            read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # whatever its config classes check; the file itself has been compared by now
        return f"transformers' config class refuses it: {' '.join(str(error).split())[:120]}"
    head_dim = getattr(read, "head_dim", None) or read.hidden_size // read.num_attention_heads
    if head_dim != source.geometry.head_dim:
        return f"transformers' GGUF reader takes {head_dim} for head_dim, not {source.geometry.head_dim}"
    for key in (*READ, *_routing_keys(source), form.row.epsilon, *(WINDOWED if form.windowed else ())):
        meant, found = form.settings.values.get(key), getattr(read, key, None)
        if key in form.settings.values and meant != found and not _close(meant, found):
            return f"transformers' GGUF reader takes {found} for {key}, not {meant}"
    return None


def _routing_keys(source: Checkpoint) -> tuple[str, ...]:
    mixture = source.geometry.family.mixture
    if mixture is None:
        return ()
    return (*mixture.count_keys, mixture.chosen_key, mixture.width_key, NORMALISED, "shared_expert_intermediate_size", "qkv_bias")


def _close(meant: Any, found: Any) -> bool:
    """Whether two numbers are one in fp32."""
    return isinstance(meant, float) and isinstance(found, float) and float(np.float32(meant)) == float(np.float32(found))


def open_with_transformers(path: Path) -> PreTrainedModel:
    """The model that transformers reads from a GGUF, in fp32."""
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def _compare_sizes(source: Checkpoint, form: GgufForm, reader: gguf.GGUFReader) -> None:
    geometry = written_geometry(source.geometry, form)
    blocks = len(geometry.blocks)
    groups = _per_block(reader, form, "attention.head_count_kv", blocks)
    lengths = _per_block(reader, form, "feed_forward_length", blocks)
    heads = _per_block(reader, form, "attention.head_count", blocks)
    widths = [block.ffn for block in geometry.blocks] if geometry.family.mixture is None else [ffn_length(geometry)] * blocks
    expected_heads = [group * geometry.queries_per_group for group in groups]
    if lengths != widths or groups != [block.kv_groups for block in geometry.blocks] or heads != expected_heads:
        found = list(zip(lengths, groups, strict=True))
        raise GateError(f"The sizes in the keys of the GGUF (FFN, KV groups) are not the checkpoint's: {found}.", REPORT)
    expected = {
        "embedding_length": geometry.hidden,
        "block_count": blocks,
        "context_length": context_length(form, Events()),
        "attention.key_length": geometry.head_dim,
        "attention.value_length": geometry.head_dim,
        "vocab_size": geometry.vocab,
    }
    routed = next((block for block in geometry.blocks if block.experts), None)
    if routed is not None:
        own = form.row.experts is not None and form.row.experts.own_width
        expected |= {"expert_feed_forward_length": routed.expert_width} if own else {}
    for key, value in expected.items():
        if _key(reader, form, key) != value:
            raise GateError(f"The GGUF says {key} = {_key(reader, form, key)}, and the checkpoint {value}.", REPORT)


def _key(reader: gguf.GGUFReader, form: GgufForm, name: str) -> Any:
    field = reader.get_field(f"{form.arch}.{name}")
    return None if field is None else field.contents()


def _per_block(reader: gguf.GGUFReader, form: GgufForm, name: str, blocks: int) -> list[int]:
    value = _key(reader, form, name)
    return list(value) if isinstance(value, list) else [value] * blocks


def _expected(reference: Reference, entry: GgufTensor) -> torch.Tensor:
    if entry.source is None:
        return torch.zeros(entry.shape, dtype=DTYPES[entry.precision])
    return in_file(reference.tensor(entry.source), entry)


def _read(tensor: gguf.ReaderTensor, entry: GgufTensor, source: Checkpoint) -> torch.Tensor:
    data = np.array(tensor.data)  # a copy: the reader's is read-only
    found = torch.from_numpy(data.view(np.uint16) if entry.precision == "bf16" else data)
    if entry.precision == "bf16":
        found = found.view(torch.bfloat16)
    found = found.reshape(entry.shape)
    return part_halves(found, source.geometry.head_dim) if entry.rotated else found
