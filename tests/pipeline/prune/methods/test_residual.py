"""Space residual: channels of the stream go in every block, and the smaller model is the dense one with zeros in them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.prune.allocation.budget import removed_in_every_definition
from pipeline.prune.methods.residual_energy import energy_share
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from pipeline.sources.recipe import CalibrationWindows
from tests.tiny import VOCAB, tiny_model
from trimline.recipe import Recipe
from trimline.stages.preflight import preflight

WINDOWS = torch.randint(4, VOCAB, (4, 24), generator=torch.Generator().manual_seed(7))
KEPT = tuple(channel for channel in range(64) if channel % 4)  # 48 of 64
CASES = [
    *((family, profile) for family in ("llama", "mistral", "qwen2", "phi3") for profile in (Profile.UNIFORM, Profile.FREE)),
    ("llama", Profile.DECILM),
    ("qwen2", Profile.DECILM),
]
RESIDUAL: dict[str, Any] = {"method": "residual_energy", "budget": {"residual": {"remove": 0.25}}, "round_to": 16}
WIDTH: dict[str, Any] = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "round_to": 16, "compensation": "least_squares"}
GROUPS: dict[str, Any] = {"method": "cfsp_extended", "budget": {"kv_group": {"remove": 0.5}}}
DEPTH: dict[str, Any] = {"method": "laco", "budget": {"layer": {"keep": 3}}, "options": {"merge": "equation", "layers": 2, "lowest": 0}}
SPARSE: dict[str, Any] = {"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}


def shrinking(folder: Path) -> ShrinkingModel:
    return ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))


def planned(model: ShrinkingModel, *steps: dict[str, Any]) -> Plan:
    recipe = PruneSlice(calibration=CalibrationWindows(windows=4, window=24), steps=tuple(PruneStep(**step) for step in steps))
    return make_plan(model, WINDOWS, recipe, Events())


def rebuilt(tmp: Path, dense: Path, plan: Plan, profile: Profile) -> Path:
    for name in ("plan", "out"):
        (tmp / name).mkdir()
    plan.write(tmp / "plan")
    rebuild(dense, tmp / "plan", RebuildSlice(profile=profile), RunOptions(dtype="float32", threads=1), tmp / "out", Events())
    return tmp / "out"


def without_channels(dense: Path, kept: tuple[int, ...] = KEPT) -> Plan:
    geometry = Checkpoint(dense).geometry
    return Plan(geometry.family, replace(Selection.everything(geometry), residual=kept), ())


def attempt(out: Path) -> dict[str, Any]:
    gate = read_json(out / "gate.json")
    assert gate["passed"]
    return dict(gate["attempts"][-1])


@pytest.mark.parametrize(("family", "profile"), CASES)
def test_rebuilt_model_is_the_dense_one_with_zeros(tmp_path: Path, family: str, profile: Profile) -> None:
    dense = tiny_model(family, tmp_path / "dense")
    out = rebuilt(tmp_path, dense, without_channels(dense), profile)
    assert attempt(out)["dtype"] == "float32"
    before, after = Checkpoint(dense), Checkpoint(out)
    assert after.geometry.hidden == 48
    assert after.geometry.head_dim == before.geometry.head_dim
    assert after.config["rms_norm_eps"] == pytest.approx(before.config["rms_norm_eps"] * 64 / 48)
    assert after.tensor("model.embed_tokens.weight").shape == (VOCAB, 48)
    norm = before.tensor("model.norm.weight")[list(KEPT)] * math.sqrt(64 / 48)
    torch.testing.assert_close(after.tensor("model.norm.weight"), norm)


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_norms_give_the_same_beside_zeros_whatever_their_epsilon(tmp_path: Path, epsilon: float) -> None:
    dense = tiny_model("llama", tmp_path / "dense", rms_norm_eps=epsilon)
    attempt(rebuilt(tmp_path, dense, without_channels(dense), Profile.UNIFORM))
    stream, weight = torch.randn(5, 64).double(), torch.randn(64).double()
    stream[:, ::4] = 0
    all_channels = weight * stream / (stream.square().mean(1, keepdim=True) + epsilon).sqrt()
    left, scaled = stream[:, list(KEPT)], weight[list(KEPT)] * math.sqrt(64 / 48)
    fewer = scaled * left / (left.square().mean(1, keepdim=True) + epsilon * 64 / 48).sqrt()
    torch.testing.assert_close(all_channels[:, list(KEPT)], fewer)


def test_norms_rounded_to_bf16_still_agree(tmp_path: Path) -> None:
    dense = tiny_model("llama", tmp_path / "dense")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(dense / "model.safetensors").items()}
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    (dense / "config.json").write_text(json.dumps(Checkpoint(dense).config | {"dtype": "bfloat16"}))
    out = rebuilt(tmp_path, dense, without_channels(dense), Profile.UNIFORM)
    assert Checkpoint(out).tensor("model.norm.weight").dtype == torch.bfloat16
    assert attempt(out)["dtype"] == "float32"


def test_heads_that_do_not_divide_the_new_width_make_it_mistral(tmp_path: Path) -> None:
    dense = tiny_model("llama", tmp_path / "dense")
    out = rebuilt(tmp_path, dense, without_channels(dense, tuple(range(50))), Profile.UNIFORM)
    assert Checkpoint(out).config["model_type"] == "mistral"
    attempt(out)


@pytest.mark.parametrize(
    ("steps", "profile"),
    [
        ((RESIDUAL, WIDTH), Profile.DECILM),
        ((WIDTH, RESIDUAL), Profile.DECILM),
        ((RESIDUAL, RESIDUAL | {"shots": 2}, GROUPS), Profile.FREE),
        ((RESIDUAL, SPARSE), Profile.UNIFORM),
        ((DEPTH, RESIDUAL), Profile.UNIFORM),
        ((RESIDUAL, DEPTH), Profile.UNIFORM),
    ],
    ids=["then width", "after width", "three times", "then 2:4", "after LaCo", "then LaCo"],
)
def test_with_other_steps(tmp_path: Path, steps: tuple[dict[str, Any], ...], profile: Profile) -> None:
    dense = tiny_model("llama", tmp_path / "dense")
    model = shrinking(dense)
    plan = planned(model, *steps)
    out = rebuilt(tmp_path, dense, plan, profile)
    attempt(out)
    with torch.inference_mode():
        live, found = model.model(WINDOWS, use_cache=False).logits, load_model(out)(WINDOWS).logits
    assert (live - found).abs().max() < 1e-4 * live.abs().max()
    assert Plan.read(tmp_path / "plan").selection == plan.selection


def test_energy_share_is_what_readers_get_from_a_channel() -> None:
    inputs, weights = torch.randn(40, 6), [torch.randn(4, 6), torch.randn(3, 6)]
    energy = torch.zeros(6, dtype=torch.float64)
    for token in inputs:
        for channel in range(6):
            for weight in weights:
                energy[channel] += (token[channel] * weight[:, channel]).double().square().sum()
    torch.testing.assert_close(energy_share(inputs.square().sum(0), weights), energy / energy.sum(), rtol=1e-5, atol=0)
    assert energy_share(torch.zeros(6), weights).tolist() == [0.0] * 6


def test_channels_with_the_least_energy_in_all_blocks_go(tmp_path: Path) -> None:
    dense = tiny_model("mistral", tmp_path / "dense")
    plan = planned(shrinking(dense), RESIDUAL)
    total = sum(plan.scores[f"step0.residual.{block}"] for block in range(4))
    assert isinstance(total, torch.Tensor)
    assert plan.selection.residual == tuple(total.topk(48).indices.sort().values.tolist())
    assert plan.steps[0].kept["residual"] == plan.selection.residual
    assert total.sum().item() == pytest.approx(8, rel=1e-5)  # two places in each of four blocks


def test_a_second_round_counts_what_is_left(tmp_path: Path) -> None:
    model = shrinking(tiny_model("llama", tmp_path))
    plan = planned(model, RESIDUAL, RESIDUAL | {"budget": {"residual": {"keep": 32}}})
    first, second = (set(step.kept["residual"]) for step in plan.steps)
    assert (len(first), len(second)) == (48, 32)
    assert second < first


def test_budgets(tmp_path: Path) -> None:
    model = shrinking(tiny_model("llama", tmp_path))
    before = model.current
    planned(model, RESIDUAL | {"budget": {"residual": {"remove": 0.25, "of": "parameters"}}})
    removed = removed_in_every_definition(before, model.current)
    assert (removed["residual_channels"], removed["decoder_parameters"]) == (0.25, 0.25)
    again = shrinking(tmp_path)
    planned(again, RESIDUAL | {"budget": {"residual": {"remove": 0.2, "of": "flops", "context": 64}}, "round_to": 1})
    assert removed_in_every_definition(before, again.current, context=64)["decoder_flops"] == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("family", "budget", "message"),
    [
        ("opt", {"remove": 0.25}, "LayerNorm takes the mean over all channels"),
        ("qwen3", {"remove": 0.25}, "share their epsilon"),
        ("llama", {"keep": 65}, "keeps 65 of 64 channels"),
        ("llama", {"keep": [48] * 4}, "Give one number|keeps a list"),
        ("llama", {"remove": 0.9}, "less than one tile of 16"),
    ],
)
def test_refused(tmp_path: Path, family: str, budget: dict[str, Any], message: str) -> None:
    model = shrinking(tiny_model(family, tmp_path))
    with pytest.raises(TrimlineError, match=message):
        planned(model, RESIDUAL | {"budget": {"residual": budget}})


@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_plans_of_others_are_refused_before_anything_is_written(tmp_path: Path, family: str) -> None:
    dense = tiny_model(family, tmp_path / "dense")
    with pytest.raises(TrimlineError, match="cannot lose channels of the residual stream"):
        rebuilt(tmp_path, dense, without_channels(dense), Profile.FREE)
    assert not list((tmp_path / "out").iterdir())


def test_a_plan_with_channels_that_are_not_there_is_refused(tmp_path: Path) -> None:
    dense = tiny_model("llama", tmp_path / "dense")
    with pytest.raises(TrimlineError, match="channel 64 of a residual stream of 64"):
        rebuilt(tmp_path, dense, without_channels(dense, (*KEPT, 64)), Profile.UNIFORM)


def test_pooled_budgets_are_of_units_inside_blocks() -> None:
    with pytest.raises(ValueError, match="a pooled budget is of ffn and kv_group"):
        PruneStep.model_validate({"method": "residual_energy", "pooled": {"spaces": ["residual"], "remove": 0.2}})


@pytest.mark.parametrize(
    ("family", "recover", "message"),
    [("opt", None, "LayerNorm"), ("llama", {"loss": "distillation", "hidden_states": 1.0}, "hidden states cannot be compared")],
)
def test_recipes_are_refused_before_pruning(tmp_path: Path, family: str, recover: dict[str, Any] | None, message: str) -> None:
    values = {"name": "narrow", "prune": {"steps": [RESIDUAL]}} | ({"recover": recover} if recover else {})
    with pytest.raises(TrimlineError, match=message):
        preflight(Recipe.model_validate(values), RunOptions(), Checkpoint(tiny_model(family, tmp_path)))
