"""Kinds of block: read by rules from a config, cut with their blocks, counted with what they carry."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.formulas.roofline import Call, cache_bytes, operators
from pipeline.architecture.families import FAMILIES, Sublayer
from pipeline.architecture.families.kinds import Adjusted, Between, Every, First, Indexed, Listed, Rule, worked_out
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import check_heads, check_timed
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.prune.model.collapsing import check_alike
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.rebuild.consumers import consumers
from pipeline.rebuild.gguf_form import gguf_form
from tests.pipeline.rebuild.cases import Choice, plan_for, rebuilt, rebuilt_tiny, same_width
from tests.quick import quick_alone
from tests.tiny import TINY_TYPES, random_model, tiny_model
from trimline.inspect.read import inspect_folder
from trimline.recipe import Recipe
from trimline.stages.preflight import preflight

WITH_KINDS = [name for name in TINY_TYPES if FAMILIES[name].kinds.rules]


@pytest.mark.parametrize(
    ("rule", "config", "kinds", "kept", "after"),
    [
        (Every("n", "a", "b", default=2), {}, "baba", (0, 1, 2), {}),
        (Every("n", "a", "b", default=2), {"n": 3}, "bbab", (0, 1, 2), {}),
        (First("k", "a", "b"), {"k": 1}, "abbb", (1, 3), {"k": 0}),
        (First("k", "a", "b"), {"k": 3}, "aaab", (0, 2, 3), {"k": 2}),
        (Between("f", "t", "a", "b", (1, -1)), {}, "baaa", (1, 3), {"f": 0, "t": 1}),
        (Between("f", "t", "a", "b", (1, -1)), {"f": 1, "t": 2}, "baab", (0, 2, 3), {"f": 1, "t": 1}),
        (Between("f", "t", "a", "b", (1, -1)), {"f": 1, "t": 2}, "baab", (0, 3), {"f": 2, "t": 2}),  # none of them is left
        (Indexed("i", "a", "b"), {"i": [1, 3]}, "baba", (0, 3), {"i": [1]}),
        (Listed("l", {"x": "a", "y": "b"}), {"l": ["x", "y", "y", "x"]}, "abba", (0, 1), {}),
        (Listed("l", {"x": "a"}, First("k", "a", "b")), {"k": 2}, "aabb", (0, 1), {"k": 2}),
    ],
)
def test_rules(rule: Rule, config: dict[str, Any], kinds: str, kept: tuple[int, ...], after: dict[str, Any]) -> None:
    assert "".join(rule.kind(config, block) for block in range(4)) == kinds
    assert dict(rule.after(config, kept)) == after
    if all(not isinstance(value, list) for value in config.values()):  # lists by block are cut where all lists are
        left = {**config, **after}
        changed = "".join(rule.kind(left, number) for number in range(len(kept)))
        assert isinstance(rule, Every) or changed == "".join(kinds[block] for block in kept)


def test_sizes_are_worked_out_from_keys() -> None:
    assert worked_out("2 * heads * width + heads", {"heads": 3, "width": 5}) == 33


@pytest.mark.parametrize(
    ("config", "width"),
    [({}, 8192), ({"switch": False}, 12288), ({"factor": 1.3}, 10752), ({"factor": None}, 8192), ({"tile": 1000}, 9000)],
)
def test_an_adjusted_width(config: dict[str, Any], width: int) -> None:
    assert Adjusted("switch", "factor", "tile", (True, 1.0, 256)).width(config, 12288) == width


def test_a_list_that_names_no_kind_is_refused_with_its_key() -> None:
    config = random_model("lfm2").config.to_dict()
    with pytest.raises(
        TrimlineError, match="unusable layer_types or full_attn_idxs: 'mamba' is no kind of block that lfm2 is described with"
    ):
        Geometry.from_config(config | {"layer_types": ["conv", "mamba", "conv", "conv"]})
    with pytest.raises(TrimlineError, match="it does not say of which kind block 1 is"):
        Geometry.from_config(config | {"layer_types": ["conv"]})


@pytest.mark.parametrize("name", WITH_KINDS)
def test_all_that_a_block_carries_is_counted(name: str) -> None:
    model = random_model(name)
    geometry = Geometry.from_config(model.config.to_dict())
    assert geometry.total_parameters() == sum(parameter.numel() for parameter in model.parameters())
    matrices = sum(p.numel() for key, p in model.named_parameters() if p.dim() > 1 and ".layers." in key)
    assert geometry.decoder_parameters() == matrices


@pytest.mark.parametrize("name", WITH_KINDS)
@pytest.mark.parametrize("place", quick_alone((0, 1), (1,)))
def test_a_block_of_every_kind_goes_with_the_lists(tmp_path: Path, name: str, place: int) -> None:
    def choose(choice: Choice) -> None:
        choice.blocks.remove(place)

    out = rebuilt_tiny(tmp_path, name, choose, Profile.UNIFORM)
    dense, left = Checkpoint(tmp_path / "dense").geometry, Checkpoint(out).geometry
    assert left.blocks == tuple(block for number, block in enumerate(dense.blocks) if number != place)
    assert read_json(out / "gate.json")["passed"]


def test_the_cost_of_a_convolution_and_of_a_gated_delta_rule() -> None:
    short = Geometry.from_config(random_model("lfm2").config.to_dict())
    assert short.cache_numbers(10) == 10 * 2 * 2 * 32 + 2 * 64 * 3  # two blocks of two KV groups, two that keep three inputs
    delta = Geometry.from_config(random_model("qwen3_5_text").config.to_dict())
    block = next(block for block in delta.blocks if not block.is_ordinary(Sublayer.ATTENTION))
    state, mixed = 4 * 12 * 8, 2 * 2 * 8 + 4 * 12
    assert delta.block_state(block) == state + 3 * mixed
    assert delta.block_flops(block, 0) == 2 * delta.block_parameters(block) + 7 * state == delta.block_flops(block, 1000)
    work = {op.name: op for op in operators(delta, Call(tokens=1, past=100))}
    assert work["0.state"].flops == 7 * state
    assert work["0.linear_attn.conv1d.weight"].flops == 2 * 3 * mixed
    assert math.isclose(cache_bytes(delta, Call(1, 100)), 4 * delta.cache_numbers(100))


def test_a_budget_of_blocks_keeps_one_that_attends(tmp_path: Path) -> None:
    """Whatever the scores say: transformers' cache could not count the tokens of what is left."""
    source = tiny_model("lfm2", tmp_path)
    model = ShrinkingModel(load_model(source), Checkpoint(source))
    tokens = torch.randint(4, 100, (2, 16), generator=torch.Generator().manual_seed(0)).tolist()
    step = {"method": "block_influence", "budget": {"layer": {"keep": 1}}}
    recipe = PruneSlice.model_validate({"calibration": {"token_ids": tokens}, "steps": [step]})
    plan = make_plan(model, torch.tensor(tokens), recipe, Events())
    assert plan.selection.blocks in ((1,), (3,))


def test_what_stands_beside_an_attention_keeps_it(tmp_path: Path) -> None:
    def choose(choice: Choice) -> None:
        choice.kv[0] = ()

    with pytest.raises(TrimlineError, match="cannot lose all of its KV groups"):
        rebuilt_tiny(tmp_path, "falcon_h1", choose, Profile.FREE)


OLD: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lfm2": (("intermediate_size", "layer_types"), {"block_ff_dim": 135, "full_attn_idxs": [1, 3]}),
    "nemotron_h": (("layers_block_type",), {"hybrid_override_pattern": "M-*-M*"}),
    "granitemoehybrid": ((), {"layer_types": ["mamba", "attention", "mamba", "attention"]}),
    "qwen3_5_text": (("layer_types",), {"full_attention_interval": 2}),
}


@pytest.mark.parametrize("name", OLD)
def test_folders_in_older_spelling(tmp_path: Path, name: str) -> None:
    source = tiny_model(name, tmp_path / "dense")
    today = Checkpoint(source).geometry
    left_out, stated = OLD[name]
    config = {key: value for key, value in read_json(source / "config.json").items() if key not in left_out} | stated
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert Checkpoint(source).geometry == today

    def choose(choice: Choice) -> None:
        same_width(choice)
        choice.blocks.remove(1)

    out = rebuilt(tmp_path, source, plan_for(source, choose), Profile.UNIFORM)
    assert Checkpoint(out).geometry.blocks == tuple(replace(b, ffn=b.ffn and 64) for n, b in enumerate(today.blocks) if n != 1)


def test_heads_that_predict_further_tokens_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    source = tiny_model("qwen3_5_text", tmp_path / "dense")
    tensors = load_file(source / "model.safetensors") | {"mtp.fc.weight": torch.zeros(4, 8), "mtp.norm.weight": torch.zeros(8)}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert Checkpoint(source).left_out.startswith("mtp.fc.weight and 1 more are left out: transformers' class of qwen3_5_text has no head")
    heard: list[Event] = []
    out = rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM, heard)
    assert Checkpoint(source).left_out in [event.text for event in heard]
    assert not Checkpoint(out).left_out


def test_channels_of_the_stream_go_beside_a_latent_attention(tmp_path: Path) -> None:
    """The norms between its pairs have an epsilon of their own, so that it can be proven."""
    source = tiny_model("youtu", tmp_path / "dense")
    plan = plan_for(source, lambda choice: None)
    plan = replace(plan, selection=replace(plan.selection, residual=tuple(range(0, 64, 2))))
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    assert Checkpoint(out).shape("model.layers.0.self_attn.q_a_proj.weight") == (24, 32)
    assert Checkpoint(out).shape("model.layers.0.self_attn.o_proj.weight") == (32, 40)


def test_a_multiplier_that_follows_the_depth_stays_what_it_was(tmp_path: Path) -> None:
    out = rebuilt_tiny(tmp_path, "minicpm3", lambda choice: choice.blocks.remove(2), Profile.UNIFORM)
    assert read_json(out / "config.json")["scale_depth"] == pytest.approx(1.4 * (3 / 4) ** 0.5)


def test_latent_attention_keeps_latents_and_has_no_groups() -> None:
    geometry = Geometry.from_config(random_model("youtu").config.to_dict())
    block = geometry.blocks[0]
    assert geometry.kv_bytes_per_token(1) == 4 * (16 + 8)
    assert geometry.block_flops(block, 10) - geometry.block_flops(block, 0) == 10 * 2 * 4 * (12 + 8 + 10)
    with pytest.raises(TrimlineError, match="youtu has no KV groups that could go"):
        check_heads(geometry.family)


@pytest.mark.parametrize("name", ["falcon_h1", "lfm2", "youtu"])
def test_exports_that_cannot_carry_a_mixer_are_refused_beforehand(tmp_path: Path, name: str) -> None:
    source = Checkpoint(tiny_model(name, tmp_path))
    recipe = Recipe.model_validate({"prune": {"steps": [{"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}}]}})
    with pytest.raises(TrimlineError, match=f"No graph is made of {name}: a graph hands keys and values"):
        preflight(recipe, RunOptions(), source)
    with pytest.raises(TrimlineError, match=f"The mixers that {name} carries are not written for llama.cpp here"):
        gguf_form(source.geometry, source.config)
    verdicts = {verdict.consumer: verdict for verdict in consumers(source.geometry, Profile.UNIFORM, source.config)}
    assert verdicts["transformers (stock)"].loads
    assert {verdicts[one].loads for one in ("ONNX Runtime", "onnxruntime-genai", "TensorRT", "llama.cpp")} == {False}
    with pytest.raises(TrimlineError, match="Latency tables are made of attention and FFN"):
        check_timed(source.geometry.family)


def test_inspect_tells_which_blocks_are_carried(tmp_path: Path) -> None:
    said = " ".join(inspect_folder(tiny_model("nemotron_h", tmp_path)).notes)
    assert "The mixer of blocks 0, 4 is of kind mamba; it is carried as it is, and goes with its block." in said


def test_laco_adds_up_no_blocks_of_different_kinds(tmp_path: Path) -> None:
    model = ShrinkingModel(load_model(tiny_model("lfm2", tmp_path)), Checkpoint(tmp_path))
    with pytest.raises(TrimlineError, match="block 1 is of another kind than block 0"):
        check_alike(model)
