"""Block influence in both measures, and what becomes of configs that say something about every block."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from pipeline.sources.recipe import CalibrationWindows
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (4, 24), generator=torch.Generator().manual_seed(5))
TYPES = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
MIXED: dict[str, Any] = {
    "num_hidden_layers": 6, "use_sliding_window": True, "sliding_window": 6, "layer_types": TYPES, "max_window_layers": 1,
}  # fmt: skip


def recipe(keep: int, **options: str) -> PruneSlice:
    step: dict[str, Any] = {"method": "block_influence", "budget": {"layer": {"keep": keep}}, "options": options}
    return PruneSlice(calibration=CalibrationWindows(windows=4, window=24), steps=(PruneStep(**step),))


def planned(folder: Path, keep: int, **options: str) -> Plan:
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, recipe(keep, **options), Events())


def turns(*radians: float) -> BlockStatistics:
    """Of a block that turns one token by each of these angles."""
    angle = torch.tensor(radians)
    statistics = BlockStatistics(tokens=len(radians), sequences=1)
    statistics.compare(torch.tensor([[2.0, 0.0]]).expand(len(radians), 2), torch.stack((angle.cos(), angle.sin()), dim=1))
    return statistics


@pytest.mark.parametrize("measure", ["angular", "cosine"])
def test_scores_are_those_of_the_models_own_hidden_states(tmp_path: Path, measure: str) -> None:
    folder = tiny_model("llama", tmp_path)
    with torch.inference_mode():
        outputs = load_model(folder, dtype=torch.float32).model(WINDOWS, output_hidden_states=True).hidden_states
    plan = planned(folder, 3, measure=measure)
    for block in range(3):  # the states after the last block come normalised
        total = 0.0
        for before, after in zip(outputs[block].flatten(0, 1).double(), outputs[block + 1].flatten(0, 1).double(), strict=True):
            cosine = (before @ after / (before.norm() * after.norm())).item()
            total += 1 - cosine if measure == "cosine" else math.acos(cosine) / math.pi
        assert plan.scores[f"step0.layer.{block}"].item() == pytest.approx(total / WINDOWS.numel(), rel=1e-4)
    weakest = min(range(4), key=lambda block: plan.scores[f"step0.layer.{block}"].item())
    assert plan.selection.blocks == tuple(block for block in range(4) if block != weakest)


def test_measures_are_two_orders() -> None:
    all_a_little, one_a_lot = turns(*[0.2] * 10), turns(1.5, *[0.0] * 9)
    assert all_a_little.mean_distance == pytest.approx(0.2 / math.pi, rel=1e-5)
    assert one_a_lot.mean_influence == pytest.approx((1 - math.cos(1.5)) / 10, rel=1e-5)
    assert all_a_little.mean_distance > one_a_lot.mean_distance
    assert all_a_little.mean_influence < one_a_lot.mean_influence


def test_angular_is_the_default_and_others_are_refused(tmp_path: Path) -> None:
    folder = tiny_model("qwen3", tmp_path)
    default, angular = planned(folder, 2), planned(folder, 2, measure="angular")
    assert all(torch.equal(score, angular.scores[name]) for name, score in default.scores.items())
    with pytest.raises(TrimlineError, match="measure"):
        resolve_steps(recipe(2, measure="euclidean"))


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_every_family_is_rebuilt_and_gated(tmp_path: Path, family: str) -> None:
    dense = tiny_model(family, tmp_path / "dense", num_hidden_layers=4)
    plan = planned(dense, 3, measure="cosine")
    out = rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
    assert read_json(out / "gate.json")["passed"]
    assert len(Checkpoint(out).geometry.blocks) == len(plan.selection.blocks) == 3


@pytest.mark.parametrize("profile", [Profile.UNIFORM, Profile.FREE])
def test_what_is_said_of_every_block_follows_the_blocks_that_stay(tmp_path: Path, profile: Profile) -> None:
    dense = tiny_model("qwen2", tmp_path / "dense", **MIXED)
    plan = planned(dense, 3, measure="cosine")
    out = rebuilt(tmp_path, dense, plan, profile)
    config = Checkpoint(out).config
    assert config["layer_types"] == [TYPES[block] for block in plan.selection.blocks]
    assert len(set(config["layer_types"])) == 2, "the case must mix both kinds"
    assert config["num_hidden_layers"] == 3
    assert config["max_window_layers"] == sum(block < 1 for block in plan.selection.blocks)
    gate = read_json(out / "gate.json")
    assert gate["passed"]
    model = load_model(out)
    slots = [block.self_attn.layer_idx for block in model.model.layers]
    assert slots == [0, 1, 2]
