"""A curve over counts of experts: each point is what the folder with so many experts evaluates to, and nothing is calibrated for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.shapes import Routing
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.curve.counts import counts_for
from pipeline.curve.folder import RESULT
from pipeline.curve.recipe import CurveSlice
from pipeline.curve.stage import curve
from pipeline.evaluate.perplexity import RESULT as EVALUATED
from pipeline.evaluate.perplexity import evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from tests.end_to_end.scenario import prose
from tests.pipeline.rebuild.cases import OPTIONS, rebuilt
from tests.tiny import tiny_model

WINDOWS = torch.randint(4, 100, (3, 24), generator=torch.Generator().manual_seed(7))
READ = EvaluateSlice(windows=2, window=32)
EXPERTS = {"method": "reap", "budget": {"expert": {"remove": 0.25}}}


def planned(folder: Path, *steps: dict[str, Any]) -> Plan:
    stated = PruneSlice.model_validate({"calibration": {"windows": 3, "window": 24}, "steps": list(steps or (EXPERTS,))})
    return make_plan(ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder)), WINDOWS, stated, Events())


def texts_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
    return folder


def drawn(dense: Path, plan: Plan, tmp: Path, options: RunOptions = OPTIONS, **stated: Any) -> dict[str, Any]:
    decided, out = tmp / "decided", tmp / "curve"
    decided.mkdir()
    out.mkdir()
    plan.write(decided)
    curve(dense, texts_in(tmp / "texts"), decided, CurveSlice(**stated), READ, options, out, Events())
    return read_json(out / RESULT)


def evaluated(folder: Path, dense: Path, tmp: Path) -> dict[str, Any]:
    out = tmp / f"evaluated-{folder.name}-{folder.parent.name}"
    out.mkdir()
    evaluate(folder, texts_in(tmp / "texts"), READ, OPTIONS, out, Events(), dense)
    return read_json(out / EVALUATED)


def cut(dense: Path, tmp: Path, keep: int) -> Path:
    tmp.mkdir()
    return rebuilt(tmp, dense, planned(dense, EXPERTS | {"budget": {"expert": {"keep": keep}}}), Profile.UNIFORM)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe"])  # logits forbidden; a correction, and a dense block first
def test_every_point_is_what_the_folder_with_so_many_experts_evaluates_to(tmp_path: Path, name: str) -> None:
    dense = tiny_model(name, tmp_path / "dense")
    found = drawn(dense, planned(dense), tmp_path)
    points = {point["kept"]: point for point in found["points"]}
    assert list(points) == [8, 7, 6, 5, 4]
    assert [kept for kept, point in points.items() if point["planned"]] == [6]
    assert points[8]["perplexity"] == pytest.approx(evaluated(dense, dense, tmp_path)["perplexity"], rel=1e-5)
    assert (points[8]["divergence"], points[8]["same_best"]) == (0.0, 1.0)
    for keep in (6, 4):
        folder = cut(dense, tmp_path / f"keep{keep}", keep)
        expected = evaluated(folder, dense, tmp_path)
        assert points[keep]["window_losses"] == pytest.approx(expected["window_losses"], rel=1e-5)
        assert points[keep]["divergence"] == pytest.approx(expected["divergence"], rel=1e-3)
        assert points[keep]["same_best"] == pytest.approx(expected["same_best"])
    assert found["planned as ranked"]
    assert not found["other units removed"]


def test_other_steps_of_the_plan_stand_in_every_point(tmp_path: Path) -> None:
    dense = tiny_model("qwen3_moe", tmp_path / "dense")
    plan = planned(dense, {"method": "cfsp_extended", "budget": {"kv_group": {"keep": 1}}}, EXPERTS)
    found = drawn(dense, plan, tmp_path, removed=(0.5,))
    expected = evaluated(rebuilt(tmp_path, dense, plan, Profile.UNIFORM), dense, tmp_path)
    assert [point["kept"] for point in found["points"]] == [8, 6, 4]
    assert found["points"][1]["window_losses"] == pytest.approx(expected["window_losses"], rel=1e-5)
    assert found["points"][1]["divergence"] == pytest.approx(expected["divergence"], rel=1e-3)
    assert found["points"][0]["divergence"] > 0  # without any expert gone, the KV groups are
    assert found["other units removed"]


def test_the_plan_s_own_choice_stands_at_its_own_count(tmp_path: Path) -> None:
    """Two shots: the second measures again, so the choice may not be what the first scores alone would have made."""
    dense = tiny_model("olmoe", tmp_path / "dense")
    plan = planned(dense, {"method": "frequency", "budget": {"expert": {"remove": 0.5}}, "shots": 2})
    found = drawn(dense, plan, tmp_path, removed=(0.25,))
    assert [(point["kept"], point["planned"]) for point in found["points"]] == [(8, False), (6, False), (4, True)]
    expected = evaluated(rebuilt(tmp_path, dense, plan, Profile.UNIFORM), dense, tmp_path)
    assert found["points"][2]["window_losses"] == pytest.approx(expected["window_losses"], rel=1e-5)


def test_a_model_beyond_the_memory_gives_the_same_curve(tmp_path: Path) -> None:
    dense = tiny_model("minimax_m2", tmp_path / "dense")
    (tmp_path / "little").mkdir()
    held = drawn(dense, planned(dense), tmp_path)
    little = drawn(dense, planned(dense), tmp_path / "little", RunOptions(dtype="float32", threads=1, memory=1))
    assert [point["perplexity"] for point in little["points"]] == pytest.approx([point["perplexity"] for point in held["points"]], rel=1e-5)


def test_a_plan_without_experts_has_no_curve(tmp_path: Path) -> None:
    dense = tiny_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=2)
    plan = planned(dense, {"method": "cfsp_extended", "budget": {"kv_group": {"keep": 1}}})
    with pytest.raises(TrimlineError, match="no scores of experts"):
        drawn(dense, plan, tmp_path)


def test_counts_are_rounded_to_what_groups_allow_and_those_too_small_are_named(tmp_path: Path) -> None:
    eight = Checkpoint(tiny_model("qwen3_moe", tmp_path / "eight")).geometry
    counts, ruled_out = counts_for((0.125, 0.25, 0.8, 0.9, 0.01), eight)
    assert counts == (7, 6, 2)
    assert [(one.removed, one.kept) for one in ruled_out] == [(0.9, 1)]
    assert "2 are chosen for every token" in ruled_out[0].why
    grouped = _grouped(eight)
    counts, ruled_out = counts_for((0.125, 0.25, 0.375, 0.5), grouped)
    assert counts == (4,)  # halves of eight by fours; 12.5 and 25 % come to all eight
    assert ruled_out == ()


def _grouped(geometry: Geometry) -> Geometry:
    return replace(geometry, routing=Routing(chosen=2, groups=4, chosen_groups=2))


@pytest.mark.parametrize(("method", "tokens"), [("reap", 3 * 24), ("expert_loss", 3 * 24)])
def test_a_plan_keeps_how_often_experts_were_chosen(tmp_path: Path, method: str, tokens: int) -> None:
    dense = tiny_model("qwen3_moe", tmp_path, num_hidden_layers=2)
    plan = planned(dense, EXPERTS | {"method": method})
    for block in range(2):
        assert plan.scores[f"step0.routed.{block}"].sum() == 2 * tokens
    (tmp_path / "plan").mkdir()
    plan.write(tmp_path / "plan")
    assert torch.equal(Plan.read(tmp_path / "plan").scores["step0.routed.1"], plan.scores["step0.routed.1"])
