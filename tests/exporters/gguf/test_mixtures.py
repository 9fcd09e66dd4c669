"""Mixtures as GGUF: every type that llama.cpp computes is written with its own counts, and what it computes otherwise is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from exporters.gguf.experts import expert_parts
from exporters.gguf.files import MODEL, write_gguf
from exporters.gguf.gate import gate_file
from exporters.gguf.types import stored_types
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.rebuild.consumers import consumers
from pipeline.rebuild.gguf_form import NoGgufForm, gguf_form
from tests.exporters.gguf.test_architectures import YARN, key, rotary, without_llama_cpp, written
from tests.exporters.models import OPTIONS
from tests.pipeline.rebuild.cases import Choice, fewer_experts, rebuilt_tiny
from tests.quick import some_types
from tests.tiny import MIXTURES, TINY_MIXTURES

__all__ = ["without_llama_cpp"]  # a fixture

WITHOUT = {"deepseek_v2", "deepseek_v3", "ernie4_5_moe", "lfm2_moe", "phimoe", "qwen3_5_moe_text", "qwen3_next"}
WRITTEN = [name for name in TINY_MIXTURES if name not in WITHOUT]
# What a tiny model needs so that it is written: gpt-oss's default is a YaRN whose ramp llama.cpp rounds; its OLMoE shares no key heads.
WRITABLE: dict[str, dict[str, Any]] = {"gpt_oss": {"rope_parameters": YARN}, "olmoe": {"num_key_value_heads": 4}}
TWO: dict[str, dict[str, Any]] = {name: {"num_hidden_layers": 2} for name in TINY_MIXTURES}
TWO["gpt_oss"] |= {"layer_types": ["sliding_attention", "full_attention"]}


def small(name: str, **overrides: Any) -> dict[str, Any]:
    return TWO[name] | WRITABLE.get(name, {}) | overrides


def five_experts(choice: Choice) -> None:
    assert choice.experts is not None
    choice.experts = [units and tuple(units[1:6]) for units in choice.experts]


def test_every_mixture_has_an_architecture_or_none() -> None:
    assert {name for name in TINY_MIXTURES if FAMILIES[name].gguf_arch is None} == WITHOUT


@pytest.mark.parametrize("name", some_types(WRITTEN))
def test_a_mixture_is_written_and_passes_the_gate(tmp_path: Path, name: str) -> None:
    reader, gate = written(name, tmp_path, **small(name))
    assert gate["architecture"] == FAMILIES[name].gguf_arch
    assert (key(reader, "expert_count"), key(reader, "expert_used_count")) == (8, 2)
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
    width = MIXTURES[name].get("moe_intermediate_size", 96)
    assert shapes["blk.1.ffn_gate_exps.weight"] == shapes["blk.1.ffn_up_exps.weight"] == (64, width, 8)
    assert shapes["blk.1.ffn_down_exps.weight"] == (width, 64, 8)
    assert shapes["blk.1.ffn_gate_inp.weight"] == (64, 8)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_routers_and_biases_stay_whole(tmp_path: Path, precision: str) -> None:
    reader, _ = written("gpt_oss", tmp_path, precision, **small("gpt_oss"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    stacked = {f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}
    assert {kinds[name] for name in stacked} == {precision.upper().replace("FP", "F")}
    assert {kind for name, kind in kinds.items() if "bias" in name or "gate_inp" in name or "sinks" in name} == {"F32"}


def test_keys_of_dense_blocks_first_shared_experts_and_scores(tmp_path: Path) -> None:
    glm, _ = written("glm4_moe", tmp_path, **small("glm4_moe", routed_scaling_factor=2.5, n_group=2, topk_group=1))
    said = {
        name: key(glm, name) for name in ("leading_dense_block_count", "expert_shared_count", "expert_gating_func", "expert_weights_norm")
    }
    assert said == {"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_gating_func": 2, "expert_weights_norm": True}
    assert (key(glm, "feed_forward_length"), key(glm, "expert_feed_forward_length"), key(glm, "expert_weights_scale")) == (96, 32, 2.5)
    assert (key(glm, "expert_group_count"), key(glm, "expert_group_used_count")) == (2, 1)
    qwen, _ = written("qwen2_moe", tmp_path, **small("qwen2_moe"))
    assert (key(qwen, "expert_shared_feed_forward_length"), key(qwen, "expert_feed_forward_length")) == (96, 32)
    held = {tensor.name: tensor for tensor in qwen.tensors}
    assert tuple(held["blk.0.ffn_gate_inp_shexp.weight"].shape) == (64,)


@pytest.mark.parametrize(
    ("name", "overrides"), [("qwen3_moe", {"moe_intermediate_size": 768}), ("minimax_m2", rotary("default", partial_rotary_factor=0.5))]
)
def test_transformers_reads_it_as_the_same_model(tmp_path: Path, name: str, overrides: dict[str, Any]) -> None:
    """Where its reader, which takes a width and a rotary embedding for granted, is given what it takes."""
    _, gate = written(name, tmp_path, **small(name, **overrides))
    assert gate["transformers"]["run"]
    assert gate["transformers"]["difference"] == 0


@pytest.mark.parametrize(("name", "choose", "count"), [("qwen3_moe", fewer_experts, 6), ("mixtral", five_experts, 5)])
def test_a_pruned_count_is_written_and_the_table_says_so(tmp_path: Path, name: str, choose: Any, count: int) -> None:
    folder = rebuilt_tiny(tmp_path, name, choose, Profile.UNIFORM, **small(name))
    source = Checkpoint(folder)
    form = gguf_form(source.geometry, source.config)
    verdict = next(row for row in consumers(source.geometry, Profile.UNIFORM, source.config) if row.consumer == "llama.cpp")
    assert verdict.loads
    assert verdict.why == f"as GGUF architecture {form.arch}"
    write_gguf(source, form, "fp32", tmp_path / MODEL, Events())
    assert gate_file(source, form, "fp32", tmp_path / MODEL, OPTIONS, Events())["tensors"]
    reader = gguf.GGUFReader(tmp_path / MODEL)
    assert (key(reader, "expert_count"), key(reader, "expert_used_count")) == (count, 2)


def test_beyond_memory_the_gate_reads_offloaded_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("qwen2_moe", tmp_path, **small("qwen2_moe"))
    monkeypatch.setattr("exporters.gguf.gate.is_mapped", lambda *_: True)
    source = Checkpoint(tmp_path / "qwen2_moe")
    form = gguf_form(source.geometry, source.config)
    gated = gate_file(source, form, "fp32", tmp_path / "qwen2_moe-gguf" / MODEL, OPTIONS, Events())
    assert gated["tensors"] == 37


def geometry_of(name: str, **overrides: Any) -> tuple[Geometry, dict[str, Any]]:
    config = AutoConfig.for_model(name, **(MIXTURES[name] | WRITABLE.get(name, {}) | overrides)).to_dict()
    return Geometry.from_config(config), config


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3_moe", {"norm_topk_prob": False}, "qwen3moe always divides the weights of the chosen experts by their sum"),
    ("qwen2_moe", {"norm_topk_prob": True}, "qwen2moe always takes the router's weights as they are"),
    ("olmoe", {"num_key_value_heads": 2}, "olmoe has a key head for every query head, and here 2 query heads share one"),
    ("olmoe", {"clip_qkv": 2.0}, "olmoe has no clip_qkv"),
    ("gpt_oss", {"swiglu_limit": 5.0}, "gpt-oss computes with a swiglu_limit of 7.0, and this model's is 5.0"),
    ("gpt_oss", {"rope_parameters": YARN | {"truncate": False}}, "gpt-oss begins and ends the ramp of YaRN at whole channels"),
    ("qwen3_moe", {"attention_bias": True}, r"qwen3moe has no bias on self_attn\.o_proj"),
    ("qwen3_moe", {"num_experts": 513}, "at most 512 experts, and this model has 513"),
    ("glm4_moe", {"first_k_dense_replace": 4}, "glm4moe needs experts, and no block of this model has any"),
    ("phimoe", {}, "SparseMixer"),
    ("deepseek_v3", {}, "mixers that deepseek_v3 carries"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED, ids=[f"{row[0]}: {row[2][:30]}" for row in REFUSED])
def test_what_llama_cpp_would_compute_differently_is_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(NoGgufForm, match=message) as caught:
        gguf_form(*geometry_of(name, **overrides))
    assert caught.value.remedy


def test_sizes_that_have_one_key_are_refused_where_blocks_differ() -> None:
    geometry, config = geometry_of("qwen3_moe")
    first, *others = geometry.blocks
    for uneven in ((replace(first, experts=6), *others), (replace(first, experts=0), *others), (replace(first, kv_groups=1), *others)):
        with pytest.raises(NoGgufForm, match="llama.cpp's qwen3moe has"):
            gguf_form(geometry.with_blocks(uneven), config)
    glm, config = geometry_of("glm4_moe")
    dense, *others = glm.blocks
    with pytest.raises(NoGgufForm, match="dense FFNs in the first blocks only"):
        gguf_form(glm.with_blocks((*others, dense)), config)
    assert gguf_form(glm.with_blocks((dense, dense, *others[1:])), config).arch == "glm4moe"


def test_what_the_quantiser_leaves_as_it_is_is_no_larger_type(tmp_path: Path) -> None:
    """Routers and biases are never quantised; of eight experts, and of no other number, keys and values are kept in 8 bits."""
    kinds = gguf.GGMLQuantizationType
    for count, other in ((8, ["blk.0.ffn_down_exps.weight"]), (6, ["blk.0.attn_k.weight", "blk.0.ffn_down_exps.weight"])):
        writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
        writer.add_expert_count(count)
        writer.add_tensor("blk.0.ffn_gate_inp.weight", np.zeros((count, 256), np.float32))
        writer.add_tensor("blk.0.ffn_up_exps.bias", np.zeros((count, 256), np.float32))
        for name, kind in (("attn_k", kinds.Q8_0), ("ffn_up_exps", kinds.Q4_K), ("ffn_down_exps", kinds.Q5_0)):
            block, size = gguf.GGML_QUANT_SIZES[kind]
            writer.add_tensor(f"blk.0.{name}.weight", np.zeros((count, 4, 256 // block * size), np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found = stored_types(tmp_path / "q.gguf", "q4_k_m")
        assert list(found.other) == other
        assert sum(found.counts.values()) == 3
        assert "the width of experts is the model's own" in found.sentence()


def test_parts_of_stacked_tensors_are_what_the_experts_multiply_by() -> None:
    parts = expert_parts(FAMILIES["gpt_oss"])["mlp.experts.gate_up_proj"]
    source = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    gate, up = (part.of(source) for part in parts)
    assert [part.shape((2, 3, 8)) for part in parts] == [tuple(gate.shape), tuple(up.shape)] == [(2, 4, 3)] * 2
    assert torch.equal(gate[1], source[1, :, ::2].T)
    assert torch.equal(up[1], source[1, :, 1::2].T)
    gate, up = (
        part.of(source)
        for part in expert_parts(FAMILIES["mixtral"])["mlp.experts.gate_up_proj"]
        for source in [torch.arange(24.0).reshape(2, 6, 2)]
    )
    assert gate[0].flatten().tolist() == list(range(6))
    assert up[0].flatten().tolist() == list(range(6, 12))
