"""Every family and profile through the whole stage; its own gate compares with the masked dense model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.plan import Plan
from pipeline.rebuild.gate import gate
from pipeline.rebuild.masked import apply_plan, open_masked
from tests.pipeline.rebuild.cases import (
    OPTIONS,
    Choice,
    absent_parts,
    anything,
    fewer_blocks,
    fewer_groups,
    plan_for,
    rebuilt,
    rebuilt_tiny,
    same_width,
)
from tests.tiny import TINY_FAMILIES, tiny_model

GROUPED = ("llama", "mistral", "qwen2", "qwen3")
CASES = [
    *[(family, Profile.UNIFORM, same_width) for family in TINY_FAMILIES],
    *[(family, Profile.UNIFORM, fewer_groups) for family in GROUPED],
    *[(family, Profile.UNIFORM, fewer_blocks) for family in TINY_FAMILIES],
    *[(family, Profile.DECILM, absent_parts) for family in ("llama", "mistral", "qwen2")],
    *[(family, Profile.DECILM, fewer_groups) for family in ("llama", "qwen2")],
    *[(family, Profile.FREE, anything) for family in TINY_FAMILIES],
    *[(family, Profile.FREE, absent_parts) for family in ("qwen3", "opt")],
]


@pytest.mark.parametrize(("family", "profile", "choose"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_result_computes_what_the_masked_dense_model_computes(
    tmp_path: Path, family: str, profile: Profile, choose: Callable[[Choice], None]
) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan = plan_for(source, choose)
    seen: list[Event] = []
    out = rebuilt(tmp_path, source, plan, profile, seen)
    geometry = Checkpoint(out).geometry
    assert geometry.blocks == plan.selection.geometry(Checkpoint(source).geometry).blocks
    assert geometry.total_parameters() == sum(tensor.numel() for _, tensor in Checkpoint(out).tensors())
    record = json.loads((out / "gate.json").read_text())
    assert record["passed"]
    assert record["attempts"][0]["dtype"] == "float32"
    assert [event.kind for event in seen].count("gate") == 1
    # Independent of the stage's own gate: the dense model alone differs by far more than the bar.
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        dense, small = load_model(source), load_model(out)
        difference = (dense(tokens).logits - small(tokens).logits).abs().max()
        apply_plan(dense, Checkpoint(source), plan)
        assert (dense(tokens).logits - small(tokens).logits).abs().max() < 1e-4
    assert difference > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_biases_are_cut_with_their_rows(tmp_path: Path, family: str) -> None:
    biases = {"attention_bias": True} | ({"mlp_bias": True} if family == "llama" else {})
    out = rebuilt_tiny(tmp_path, family, anything, Profile.FREE, **biases)
    assert Checkpoint(out).shape("model.layers.2.self_attn.k_proj.bias") == (16,)
    assert json.loads((out / "gate.json").read_text())["passed"]


def test_updates_take_the_place_of_cut_tensors(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense", mlp_bias=True)
    width, name = 48, "model.layers.0.mlp.down_proj"
    updates = {f"{name}.weight": torch.full((64, width), 0.01), f"{name}.bias": torch.linspace(-1, 1, 64)}
    plan = plan_for(source, lambda choice: choice.ffn.__setitem__(0, tuple(range(0, 96, 2))), updates)
    out = rebuilt(tmp_path, source, plan, Profile.DECILM)
    assert torch.equal(Checkpoint(out).tensor(f"{name}.weight"), updates[f"{name}.weight"])
    masked = open_masked(Checkpoint(source), plan, OPTIONS, torch.float32).get_parameter(f"{name}.weight")
    assert torch.equal(masked[:, ::2], updates[f"{name}.weight"])
    assert not masked[:, 1::2].any()


def test_llama_whose_heads_do_not_divide_hidden_becomes_mistral(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
    out = rebuilt_tiny(tmp_path, "llama", lambda choice: choice.kv.__setitem__(slice(None), [(0, 1, 3)] * 4), Profile.UNIFORM, **sizes)
    config = Checkpoint(out).config
    assert (config["model_type"], config["sliding_window"], config["num_attention_heads"], config["head_dim"]) == ("mistral", None, 6, 16)
    assert not list(out.glob("*.py"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layer_types_follow_their_blocks(tmp_path: Path, family: str) -> None:
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": types, "max_window_layers": 1}

    def choose(choice: Choice) -> None:
        choice.blocks.remove(0)

    out = rebuilt_tiny(tmp_path / "uniform", family, choose, Profile.UNIFORM, **window)
    assert Checkpoint(out).config["layer_types"] == types[1:]
    assert Checkpoint(out).config["max_window_layers"] == 0
    # Without the attention of the first full block, cache layers of both types must still be found by their type.
    for absent in (0, 1):
        tmp = tmp_path / f"free{absent}"
        rebuilt_tiny(tmp, family, lambda choice, absent=absent: choice.kv.__setitem__(absent, ()), Profile.FREE, **window)


def test_a_result_can_be_cut_again(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    once = rebuilt_tiny(tmp_path / "once", "llama", absent_parts, Profile.DECILM)
    (tmp_path / "twice").mkdir()

    def choose(choice: Choice) -> None:
        choice.ffn[1] = tuple(range(10, 42))

    twice = rebuilt(tmp_path / "twice", once, plan_for(once, choose), Profile.FREE)
    assert [block.ffn for block in Checkpoint(twice).geometry.blocks] == [48, 32, 0]


def test_weights_keep_their_dtype_and_companions_come_along(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    checkpoint = Checkpoint(source)
    write_checkpoint(source, checkpoint.config | {"dtype": "bfloat16"}, {n: t.bfloat16() for n, t in checkpoint.tensors()})
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    out = rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM)
    assert {tensor.dtype for _, tensor in Checkpoint(out).tensors()} == {torch.bfloat16}
    assert load_tokenizer(out)("Hello").input_ids == load_tokenizer(source)("Hello").input_ids
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "plan.json"):
        assert (out / name).is_file(), name


@pytest.mark.parametrize("tensor", ["model.layers.2.mlp.gate_proj.weight", "model.norm.weight", "model.layers.0.self_attn.v_proj.weight"])
def test_gate_fails_when_one_tensor_is_perturbed(tmp_path: Path, tensor: str) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    plan = plan_for(source, absent_parts if "2.mlp" not in tensor else same_width)
    out = rebuilt(tmp_path, source, plan, Profile.DECILM)
    checkpoint = Checkpoint(out)
    tensors = dict(checkpoint.tensors())
    tensors[tensor].view(-1)[7] += 0.05
    write_checkpoint(out, checkpoint.config, tensors)
    with pytest.raises(GateError, match="first at row"):
        gate(Checkpoint(source), plan, out, OPTIONS, Events())
    record = json.loads((out / "gate.json").read_text())
    assert not record["passed"]
    assert [attempt["dtype"] for attempt in record["attempts"]] == ["float32", "float64"]


def test_gate_fails_when_a_tensor_is_missing_or_left_over(tmp_path: Path) -> None:
    source = tiny_model("qwen3", tmp_path / "dense")
    plan = plan_for(source, same_width)
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    checkpoint = Checkpoint(out)
    tensors = dict(checkpoint.tensors())
    write_checkpoint(out, checkpoint.config, tensors | {"model.layers.0.mlp.down_proj.bias": torch.ones(64)})
    with pytest.raises(GateError, match=r"holds model\.layers\.0\.mlp\.down_proj\.bias"):
        gate(Checkpoint(source), plan, out, OPTIONS, Events())
    del tensors["model.layers.0.mlp.down_proj.weight"]
    write_checkpoint(out, checkpoint.config, tensors)
    with pytest.raises(GateError, match=r"holds no tensor model\.layers\.0\.mlp\.down_proj\.weight"):
        gate(Checkpoint(source), plan, out, OPTIONS, Events())


def test_a_plan_for_another_model_is_refused_before_writing(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    other = tiny_model("qwen2", tmp_path / "other")
    deeper = tiny_model("llama", tmp_path / "deeper", num_hidden_layers=5)
    wider = tiny_model("llama", tmp_path / "wider", intermediate_size=128)
    strange = plan_for(source, same_width, {"model.layers.0.mlp.down_proj.bias": torch.ones(64)})
    plans: list[tuple[Plan, str]] = [
        (plan_for(other, same_width), "is for qwen2"),
        (plan_for(deeper, same_width), "is for 5 blocks"),
        (plan_for(wider, lambda choice: None), "keeps unit 127"),
        (strange, "down_proj.bias"),
    ]
    for number, (plan, message) in enumerate(plans):
        tmp = tmp_path / str(number)
        tmp.mkdir()
        with pytest.raises(TrimlineError, match=message):
            rebuilt(tmp, source, plan, Profile.UNIFORM)
        assert not list((tmp / "out").iterdir())


def test_a_tensor_that_the_family_does_not_describe_is_refused(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    checkpoint = Checkpoint(source)
    extra = {"model.layers.1.mlp.router.weight": torch.ones(4, 64)}
    write_checkpoint(source, checkpoint.config, dict(checkpoint.tensors()) | extra)
    with pytest.raises(TrimlineError, match=r"mlp\.router\.weight.*does not describe"):
        rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM)
