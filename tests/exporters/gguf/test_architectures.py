"""Every type that llama.cpp has an architecture for: the file says what the model computes, or why it is refused. tests/servers runs them all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoConfig

from exporters.gguf import child
from exporters.gguf.files import MODEL
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.gguf.archs import GGUF_ARCHS
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.rebuild.gguf_form import GgufForm, NoGgufForm, gguf_form
from tests.exporters.models import OPTIONS
from tests.quick import some_types
from tests.tiny import CONFIGS, TINY_FAMILIES, TINY_TYPES, tiny_model

# What a tiny model has switched on that llama.cpp has not: switched off, so that the type can be written.
FULL: list[str] = ["full_attention"] * 4
WRITABLE: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "ernie4_5": {"use_bias": False},
    "exaone4": {"sliding_window": None, "layer_types": FULL},
    "vaultgemma": {"final_logit_softcapping": None, "attn_logit_softcapping": None},
}
HYBRIDS = {name for name, family in FAMILIES.items() if family.kinds.costs and family.mixture is None}  # their mixers are not written
WITHOUT = {"biogpt", "granite_swa", "hyperclovax", "nanochat", "opt", "persimmon", *HYBRIDS}
WRITTEN = [name for name in TINY_TYPES if name not in WITHOUT]
OTHERS = [name for name in WRITTEN if name not in TINY_FAMILIES]  # those are in test_gguf.py


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")
    monkeypatch.setattr("exporters.text.tokens.check_template", lambda *_: None)  # its process takes longer than everything else


def test_every_type_has_an_architecture_or_none() -> None:
    assert {name for name, family in FAMILIES.items() if family.gguf_arch is None and family.mixture is None} == WITHOUT
    assert {family.gguf_arch for family in FAMILIES.values()} - {None} == set(GGUF_ARCHS) - {"deci"}


def written(name: str, folder: Path, precision: Any = "fp32", **overrides: Any) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    model = tiny_model(name, folder / name, **(WRITABLE.get(name, {}) | overrides))
    out = folder / f"{name}-gguf"
    out.mkdir()
    export_gguf(model, GgufSlice(precision=precision), OPTIONS, out, Events())
    return gguf.GGUFReader(out / MODEL), read_json(out / "gate.json")


def key(reader: gguf.GGUFReader, name: str) -> Any:
    arch = reader.get_field("general.architecture")
    assert arch is not None
    field = reader.get_field(f"{arch.contents()}.{name}")
    return None if field is None else field.contents()


@pytest.mark.parametrize("name", some_types(OTHERS))
def test_a_type_is_written_and_passes_the_gate(tmp_path: Path, name: str) -> None:
    _, gate = written(name, tmp_path)
    assert gate["architecture"] == FAMILIES[name].gguf_arch
    assert gate["transformers"].get("difference", 0) == 0
    assert gate["transformers"]["run"] or gate["transformers"]["why"]


def test_gemma_3_says_windows_bases_and_whole_norms(tmp_path: Path) -> None:
    reader, _ = written("gemma3_text", tmp_path, final_logit_softcapping=20.0)
    assert key(reader, "attention.sliding_window") == 16
    assert key(reader, "attention.sliding_window_pattern") == [True, False, True, False]
    assert (key(reader, "rope.freq_base"), key(reader, "rope.freq_base_swa")) == (1e6, 1e4)
    assert (key(reader, "rope.scaling.type"), key(reader, "rope.scaling.factor")) == ("linear", 2.0)
    assert key(reader, "final_logit_softcapping") == 20.0
    assert key(reader, "context_length") == 256
    held = {tensor.name: tensor.data for tensor in reader.tensors}
    stored = Checkpoint(tmp_path / "gemma3_text")
    for name, original in (("blk.1.attn_q_norm", "model.layers.1.self_attn.q_norm"), ("output_norm", "model.norm")):
        assert torch.equal(torch.from_numpy(held[f"{name}.weight"].copy()), stored.tensor(f"{original}.weight") + 1)


def test_multipliers_scales_and_trained_activations(tmp_path: Path) -> None:
    granite, _ = written("granite", tmp_path)
    told = {name: key(granite, name) for name in ("logit_scale", "residual_scale", "embedding_scale", "attention.scale")}
    assert told == {"logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 2.0, "attention.scale": pytest.approx(0.2)}
    apertus, _ = written("apertus", tmp_path)
    assert len({tensor.name for tensor in apertus.tensors if "act" in tensor.name}) == 0
    field = apertus.get_field("xielu.alpha_p")
    assert field is not None
    assert len(set(field.contents())) == 4
    mistral, _ = written("ministral3", tmp_path)
    assert key(mistral, "attention.temperature_scale") == pytest.approx(0.1)
    assert (key(mistral, "rope.scaling.type"), key(mistral, "rope.scaling.original_context_length")) == ("yarn", 64)
    olmo, _ = written("olmo2", tmp_path, tie_word_embeddings=True)
    held = {tensor.name: tensor.data for tensor in olmo.tensors}
    assert (held["output.weight"] == held["token_embd.weight"]).all()  # this architecture has no other head


def form_of(name: str, blocks: int | None = None, **overrides: Any) -> GgufForm:
    """Without weights: what the config alone decides."""
    config = AutoConfig.for_model(name, **(CONFIGS[name] | WRITABLE.get(name, {}) | overrides)).to_dict()
    geometry = Geometry.from_config(config)
    return gguf_form(geometry if blocks is None else geometry.with_blocks(geometry.blocks[:blocks]), config)


def rotary(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


def by_kind(inside: dict[str, Any], outside: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {"sliding_attention": inside, "full_attention": outside}}


PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
LLAMA3: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma3_text", {"hidden_activation": "silu"}, "gemma3_text with gelu_new, and this model's activation is silu"),
    ("gemma2", {"hidden_activation": "gelu"}, "activation is gelu"),
    ("arcee", {"hidden_act": "silu"}, "arcee with relu2"),
    ("gemma2", {"final_logit_softcapping": None}, "gemma2 always has a final_logit_softcapping"),
    ("gemma3_text", {"attn_logit_softcapping": 30.0}, "gemma3 has no attn_logit_softcapping"),
    ("vaultgemma", {"final_logit_softcapping": 30.0}, "gemma has no final_logit_softcapping"),
    ("gemma2", {"query_pre_attn_scalar": 32}, r"root of 16 at 4 blocks, and this model by that of 32"),
    ("gemma2", {"num_hidden_layers": 46, "layer_types": ["sliding_attention"] * 46, "num_attention_heads": 8}, "root of 8 at 46 blocks"),
    ("gemma2", {"layer_types": FULL}, "gemma2 has blocks that attend to a window"),
    ("cohere2", {"layer_types": FULL}, "cohere2 has blocks that attend to a window"),
    ("exaone4", {"sliding_window": 16, "layer_types": ["sliding_attention", *FULL[1:]]}, "windows at 64 blocks only, and this model has 4"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "every block but each 4th"),
    ("smollm3", {"mlp_bias": True}, r"smollm3 has no bias on mlp\.gate_proj"),
    ("jais2", {"mlp_bias": False}, r"jais2 needs a bias on mlp\.up_proj"),
    ("cohere", {"tie_word_embeddings": False}, "command-r takes the token table for the output head"),
    ("llama", rotary("default", partial_rotary_factor=0.5), "llama turns whole heads, and this model turns 8 of 16"),
    ("qwen2", rotary("llama3", **LLAMA3), "type 'llama3' are not written for llama.cpp in its qwen2"),
    ("llama", {"rope_parameters": YARN | {"beta_fast": 16.0}}, "no keys for the ramp"),
    ("llama", {"rope_parameters": YARN | {"truncate": False}}, "ramp of YaRN at whole channels"),
    ("gemma3_text", by_kind(PLAIN, YARN), "softens blocks with a window too"),
    ("gemma3_text", by_kind(PLAIN | {"rope_type": "linear", "factor": 2.0}, PLAIN), "another rotary embedding than this model does"),
    ("olmo3", by_kind(PLAIN, PLAIN | {"rope_theta": 1e6}), r"another rotary embedding than this model does \(default, base 10000\)"),
    ("olmo2", {"num_key_value_heads": 2, "num_attention_heads": 2}, "olmo2 takes hidden size / heads for head_dim"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED, ids=[f"{row[0]}: {row[2][:30]}" for row in REFUSED])
def test_what_llama_cpp_would_compute_differently_is_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(NoGgufForm, match=message) as caught:
        form_of(name, **overrides)
    assert caught.value.remedy


def test_what_is_expressed_is_not_refused() -> None:
    assert form_of("olmo3", **by_kind(PLAIN, YARN)).settings.in_windows.kind == "default"
    assert form_of("ministral3", rope_parameters=YARN | {"beta_fast": 16.0}).settings.rotary.ramp == (16.0, 1.0)
    assert form_of("hunyuan_v1_dense", **rotary("dynamic", alpha=1000.0, factor=1.0)).settings.rotary.base == pytest.approx(
        1e4 * 1000 ** (16 / 14)
    )
    assert form_of("llama", rope_parameters=YARN | {"attention_factor": 1.0}).settings.rotary.attention == pytest.approx(
        1 / (1 + 0.1 * math.log(4))
    )
    assert not form_of("cohere").permuted  # it turns neighbours itself
    assert form_of("smollm3", num_hidden_layers=8, no_rope_layers=[1, 1, 1, 0] * 2).permuted
    with pytest.raises(NoGgufForm, match="every block but each 4th"):  # of a deeper model nobody says here which blocks stay
        form_of("smollm3", blocks=3)
