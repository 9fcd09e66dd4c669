"""Bias compensation: what it adds, where the family has no bias, in every profile, and what comes after it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.plan.places import check_same_model
from pipeline.plan.plan import Plan
from pipeline.prune.compensation.bias import bias_shift
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.biases import biases_added
from pipeline.rebuild.consumers import READ, consumers
from pipeline.rebuild.masked import apply_plan
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import quick_alone, some_families
from tests.tiny import TINY_FAMILIES, tiny_model
from trimline.inspect.read import inspect_folder
from trimline.recipe import Recipe
from trimline.stages.preflight import preflight, shapes_asked_for

WINDOWS = torch.randint(4, 100, (12, 32), generator=torch.Generator().manual_seed(3))
FLAP = {"method": "flap", "pooled": {"remove": 0.35}, "round_to": 8, "compensation": "bias"}
FFN = {"method": "magnitude", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8, "compensation": "bias"}
EVEN = {"method": "magnitude", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}}, "round_to": 8, "compensation": "bias"}
READERS = ("mlp.down_proj", "self_attn.o_proj")


def planned(folder: Path, *steps: dict[str, Any]) -> tuple[Plan, ShrinkingModel]:
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": steps}), Events()), model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(WINDOWS[:3], use_cache=False).logits


def loss_of(folder: Path, step: dict[str, Any]) -> float:
    """Mean squared difference of logits between the pruned live model and the dense one."""
    _, model = planned(folder, step)
    return (logits(model.model) - logits(load_model(folder, dtype=torch.float32))).square().mean().item()


# --- the shift ------------------------------------------------------------------------------------------------------


def test_the_shift_keeps_the_mean_output() -> None:
    inputs, weight, removed = torch.randn(40, 6) + 2, torch.randn(3, 6), torch.tensor([1, 4])
    shift = bias_shift(weight, inputs.mean(0), removed)
    without = inputs.clone()
    without[:, removed] = 0
    torch.testing.assert_close((without @ weight.T + shift).mean(0), (inputs @ weight.T).mean(0))
    assert [value.item() for value in shift] == pytest.approx(
        [sum(weight[r, j] * inputs.mean(0)[j] for j in (1, 4)).item() for r in range(3)]
    )


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_it_is_what_the_removed_channels_gave_on_average(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path)
    described = Checkpoint(folder).geometry.family
    caught: list[torch.Tensor] = []
    name = described.module(0, described.reader(Sublayer.FFN).name)
    dense = load_model(folder, dtype=torch.float32)
    dense.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0].flatten(0, -2)))
    with torch.inference_mode():
        dense(WINDOWS, use_cache=False)
    plan, _ = planned(folder, FFN)
    gone = [i for i in range(96) if i not in plan.selection.ffn[0]]
    reader = dense.get_submodule(name)
    expected = reader.weight[:, gone].detach() @ caught[0].mean(0)[gone]
    if reader.bias is not None:
        expected = expected + reader.bias.detach()  # the released code would overwrite it
    torch.testing.assert_close(plan.updates[f"{name}.bias"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_every_family_through_the_free_profile(family: str, tmp_path: Path) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan, model = planned(source, FLAP)
    out = rebuilt(tmp_path, source, plan, Profile.FREE)
    assert json.loads((out / "gate.json").read_text())["passed"]
    checkpoint, smaller = Checkpoint(out), load_model(out, dtype=torch.float32)
    torch.testing.assert_close(logits(smaller), logits(model.model), atol=2e-4, rtol=1e-4)
    assert {name: checkpoint.shape(name) for name in checkpoint.locations} == dict(checkpoint.geometry.tensors())
    assert checkpoint.geometry.total_parameters() == sum(tensor.numel() for _, tensor in checkpoint.tensors())
    uncompensated = load_model(out, dtype=torch.float32)
    for name in plan.updates:
        uncompensated.get_parameter(name).data.zero_()
    assert (logits(uncompensated) - logits(smaller)).abs().max() > 1e-2
    assert loss_of(source, FLAP) < loss_of(source, FLAP | {"compensation": "none"})


@pytest.mark.parametrize("method", [{"method": "wanda_sp"}, {"method": "cfsp_extended", "sequential": True, "allocation": "uniform"}])
def test_any_structured_method_can_have_it(method: dict[str, Any], tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    plan, _ = planned(source, EVEN | method)
    assert plan.biases == READERS
    assert json.loads((rebuilt(tmp_path, source, plan, Profile.UNIFORM) / "gate.json").read_text())["passed"]
    assert loss_of(source, EVEN | method) < loss_of(source, EVEN | method | {"compensation": "none"})


# --- where the family has no bias -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [Profile.UNIFORM, Profile.DECILM])
def test_llamas_switches_are_turned_on_and_the_other_projections_get_zeros(profile: Profile, tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    plan, _ = planned(source, EVEN)
    checkpoint = Checkpoint(rebuilt(tmp_path, source, plan, profile))
    assert (checkpoint.config["attention_bias"], checkpoint.config["mlp_bias"], checkpoint.geometry.biases) == (True, True, frozenset())
    assert "biases" not in checkpoint.config
    for name, tensor in checkpoint.tensors():
        if name.endswith(".bias"):
            assert bool(tensor.any()) is any(reader in name for reader in READERS), name
    assert {name: checkpoint.shape(name) for name in checkpoint.locations} == dict(checkpoint.geometry.tensors())


def test_only_the_switch_that_is_needed(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    plan, _ = planned(source, FFN)
    assert plan.biases == ("mlp.down_proj",)
    config = Checkpoint(rebuilt(tmp_path, source, plan, Profile.UNIFORM)).config
    assert (config["attention_bias"], config["mlp_bias"]) == (False, True)


def test_qwen3_has_a_switch_for_attention_alone(tmp_path: Path) -> None:
    source = tiny_model("qwen3", tmp_path / "dense")
    step = {"method": "magnitude", "budget": {"kv_group": {"remove": 0.5}}, "compensation": "bias"}
    config = Checkpoint(rebuilt(tmp_path, source, planned(source, step)[0], Profile.UNIFORM)).config
    assert (config["attention_bias"], config["model_type"]) == (True, "qwen3")


def test_a_bias_that_is_there_already_needs_nothing_new(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense", attention_bias=True, mlp_bias=True)
    plan, _ = planned(source, EVEN)
    assert plan.biases == ()
    assert {name.rpartition(".")[2] for name in plan.updates} == {"bias"}
    assert json.loads((rebuilt(tmp_path, source, plan, Profile.UNIFORM) / "gate.json").read_text())["passed"]


NO_BIAS = [
    ("mistral", FFN, "mlp.down_proj"),
    ("qwen2", EVEN, "self_attn.o_proj"),
    ("qwen3", FFN, "mlp.down_proj"),
    ("phi3", FFN, "mlp.down_proj"),
]


@pytest.mark.parametrize(("family", "step", "projection"), NO_BIAS)
def test_a_profile_that_cannot_say_it_is_refused_before_and_after_measuring(
    family: str, step: dict[str, Any], projection: str, tmp_path: Path
) -> None:
    source = tiny_model(family, tmp_path / "dense")
    recipe = Recipe.model_validate({"prune": {"steps": [step]}, "rebuild": {"profile": "uniform"}})
    match = f"'uniform' cannot give {projection} a bias: {family} has none there"
    with pytest.raises(TrimlineError, match=match) as caught:
        preflight(recipe, RunOptions(threads=1), Checkpoint(source))
    assert "profile 'free'" in caught.value.remedy
    with pytest.raises(TrimlineError, match=match):
        rebuilt(tmp_path, source, planned(source, step)[0], Profile.UNIFORM)
    assert not list((tmp_path / "out").iterdir())


def test_preflight_lets_pass_what_can_be_said(tmp_path: Path) -> None:
    for family, profile in (("llama", "uniform"), ("opt", "uniform"), ("mistral", "free")):
        source = Checkpoint(tiny_model(family, tmp_path / family, max_position_embeddings=1024))
        preflight(Recipe.model_validate({"prune": {"steps": [FFN]}, "rebuild": {"profile": profile}}), RunOptions(threads=1), source)


def test_uniform_structures_of_flap_fit_the_uniform_profile() -> None:
    for structure, uneven in (("UL-UM", False), ("AL-AM", True)):
        step = FLAP | {"options": {"structure": structure}}
        steps = resolve_steps(PruneSlice.model_validate({"steps": [step]}))
        assert shapes_asked_for(steps, Profile.UNIFORM) == (uneven, uneven, True)


def test_a_llama_with_biases_cannot_be_written_as_mistral(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense", num_attention_heads=4, num_key_value_heads=4)
    keep_three = {"method": "magnitude", "budget": {"kv_group": {"keep": 3}}}
    plain = planned(source, keep_three)[0]
    (tmp_path / "plain").mkdir()
    assert Checkpoint(rebuilt(tmp_path / "plain", source, plain, Profile.UNIFORM)).config["model_type"] == "mistral"
    with pytest.raises(TrimlineError, match="cannot be written as mistral") as caught:
        rebuilt(tmp_path, source, planned(source, keep_three | {"compensation": "bias"})[0], Profile.UNIFORM)
    assert "without biases" in caught.value.remedy


def test_a_second_run_takes_listed_biases_along(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    source = tiny_model("llama", tmp_path / "dense")
    once = rebuilt(first, source, planned(source, FFN | {"allocation": "uniform"})[0], Profile.FREE)
    assert Checkpoint(once).config["biases"] == ["mlp.down_proj"]
    for profile, listed in ((Profile.FREE, ["mlp.down_proj", "self_attn.o_proj"]), (Profile.UNIFORM, None)):
        folder = tmp_path / profile.value
        folder.mkdir()
        plan, _ = planned(once, EVEN | {"allocation": "uniform"})
        assert plan.biases == ("self_attn.o_proj",)
        twice = Checkpoint(rebuilt(folder, once, plan, profile))
        assert twice.config.get("biases") == listed
        assert {name: twice.shape(name) for name in twice.locations} == dict(twice.geometry.tensors())


# --- steps and sublayers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", quick_alone(TINY_FAMILIES, ("llama", "opt")))
@pytest.mark.parametrize("second", [FLAP, EVEN | {"compensation": "least_squares"}], ids=("bias", "least_squares"))
def test_steps_after_it_build_on_it(family: str, second: dict[str, Any], tmp_path: Path) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan, model = planned(source, FFN, second)
    masked = load_model(source, dtype=torch.float32)
    apply_plan(masked, Checkpoint(source), plan)
    torch.testing.assert_close(logits(model.model), logits(masked), atol=1e-4, rtol=0)
    assert json.loads((rebuilt(tmp_path, source, plan, Profile.FREE) / "gate.json").read_text())["passed"]


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_what_a_lost_sublayer_gave_goes_to_the_one_before_it(family: str, tmp_path: Path) -> None:
    source = tiny_model(family, tmp_path / "dense")
    groups = Checkpoint(source).geometry.blocks[0].kv_groups
    keep = {"ffn": {"keep": [96, 0, 96, 48]}, "kv_group": {"keep": [groups, groups, 0, 0]}}
    step = {"method": "magnitude", "budget": keep, "compensation": "bias"}
    plan, model = planned(source, step)
    # What is published: projections without inputs left, whose bias is what they gave on average (and had as a bias).
    published = load_model(source, dtype=torch.float32)
    described = Checkpoint(source).geometry.family
    apply_plan(published, Checkpoint(source), planned(source, step | {"compensation": "none"})[0])
    changed = ((1, Sublayer.FFN), (2, Sublayer.ATTENTION), (3, Sublayer.ATTENTION), (3, Sublayer.FFN))
    dense = load_model(source, dtype=torch.float32)
    for block, sublayer in changed:
        name = described.module(block, described.reader(sublayer).name)
        inputs: list[torch.Tensor] = []
        handle = dense.get_submodule(name).register_forward_pre_hook(lambda _, args, into=inputs: into.append(args[0].flatten(0, -2)))
        with torch.inference_mode():
            dense(WINDOWS, use_cache=False)
        handle.remove()
        reader, lame = dense.get_submodule(name), published.get_submodule(name)
        gone = (lame.weight == 0).all(0)
        shift = reader.weight[:, gone].detach() @ inputs[0].mean(0)[gone]
        if reader.bias is not None:
            shift = shift + reader.bias.detach()
        lame.bias = torch.nn.Parameter(shift)
    torch.testing.assert_close(logits(model.model), logits(published), atol=1e-4, rtol=1e-4)
    checkpoint = Checkpoint(rebuilt(tmp_path, source, plan, Profile.FREE))
    assert [(block.ffn, block.kv_groups) for block in checkpoint.geometry.blocks] == [(96, groups), (0, groups), (96, 0), (48, 0)]
    torch.testing.assert_close(logits(load_model(checkpoint.folder, dtype=torch.float32)), logits(published), atol=1e-4, rtol=1e-4)


def test_before_the_first_sublayer_there_is_none_to_take_it(tmp_path: Path) -> None:
    step = {"method": "magnitude", "budget": {"kv_group": {"keep": [0, 2, 2, 2]}}, "compensation": "bias"}
    assert planned(tiny_model("llama", tmp_path), step)[0].updates == {}


# --- the plan and what reads it -------------------------------------------------------------------------------------


def test_the_plan_says_which_projections_get_a_bias(tmp_path: Path) -> None:
    source = tiny_model("mistral", tmp_path / "dense")
    plan, _ = planned(source, FLAP)
    plan.write(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["biases"] == list(READERS)
    read = Plan.read(tmp_path)
    assert read.biases == plan.biases == READERS
    geometry = read.geometry(Checkpoint(source).geometry)
    assert [geometry.has_bias(linear) for linear in geometry.family.linears] == [False, False, False, True, False, False, True]


def test_plans_with_biases_for_another_model_are_refused(tmp_path: Path) -> None:
    source = Checkpoint(tiny_model("llama", tmp_path / "dense"))
    plan, _ = planned(source.folder, FFN)
    check_same_model(source, plan)
    with pytest.raises(TrimlineError, match=r"updates model\.layers\.0\.mlp\.down_proj\.bias"):
        check_same_model(source, replace(plan, biases=()))
    with pytest.raises(TrimlineError, match="mlp.down a bias, and llama has no such projection"):
        check_same_model(source, replace(plan, biases=("mlp.down",)))


@pytest.mark.parametrize("biases", ["mlp.down_proj", ["mlp.down"], [["mlp.down_proj"]], 3])
def test_a_config_whose_biases_are_none(biases: Any, tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    config = Checkpoint(rebuilt(tmp_path, source, planned(source, FLAP)[0], Profile.FREE)).config
    assert Geometry.from_config(config).biases == set(READERS)
    with pytest.raises(TrimlineError, match="unusable biases"):
        Geometry.from_config(config | {"biases": biases})


def test_biases_are_of_our_own_configs_only(tmp_path: Path) -> None:
    config = Checkpoint(tiny_model("llama", tmp_path)).config
    assert Geometry.from_config(config | {"biases": "somebody's own key"}).biases == frozenset()


@pytest.mark.parametrize(("family", "refusing"), [("llama", {"optimum-onnx"}), ("qwen3", {"vLLM", "llama.cpp"})])
def test_who_loads_an_output_projection_with_a_bias(family: str, refusing: set[str], tmp_path: Path) -> None:
    dense = Checkpoint(tiny_model(family, tmp_path))
    plan, _ = planned(dense.folder, {"method": "magnitude", "budget": {"kv_group": {"remove": 0.5}}, "compensation": "bias"})
    result = replace(plan.geometry(dense.geometry), biases=biases_added(dense.geometry, plan.biases, Profile.UNIFORM))
    table = consumers(result, Profile.UNIFORM, dense.config)
    assert {verdict.consumer for verdict in table if not verdict.loads} == refusing
    assert all(verdict.change for verdict in table if not verdict.loads)
    assert {verdict.checked for verdict in table if verdict.consumer in ("vLLM", "llama.cpp", "optimum-onnx")} == {READ}


@pytest.mark.parametrize(("family", "stock"), [("llama", True), ("mistral", False)])
def test_inspecting_a_plan_counts_its_biases(family: str, stock: bool, tmp_path: Path) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan, _ = planned(source, EVEN)
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM if stock else Profile.FREE)
    seen = inspect_folder(tmp_path / "plan", source)
    assert seen.parameters == sum(tensor.numel() for _, tensor in Checkpoint(out).tensors())
    assert {row.consumer: row.loads for row in seen.consumers}["transformers (stock)"] is stock
