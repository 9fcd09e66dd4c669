"""What is measured once serves every budget: plans from kept measurements are those of measuring again, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.calibrate.statistics import BlockStatistics
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.measure import LARGEST, measure, measured_part
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import prune
from tests.tiny import tiny_model

OPTIONS = RunOptions(dtype="float32", threads=1)
TOKENS = torch.randint(4, 100, (8, 32), generator=torch.Generator().manual_seed(5)).tolist()
FFN = {"budget": {"ffn": {"remove": 0.5}}, "round_to": 8}
POOLED = {"pooled": {"remove": 0.3}, "round_to": 8}
STEPS = {
    "cfsp": {"method": "cfsp"} | FFN,
    "cfsp, least squares": {"method": "cfsp", "compensation": "least_squares"} | FFN,
    "cfsp, sequential": {"method": "cfsp", "sequential": True, "compensation": "least_squares"} | FFN,
    "magnitude": {"method": "magnitude"} | FFN,
    "wanda_sp": {"method": "wanda_sp"} | FFN,
    "gblm": {"method": "gblm"} | FFN,
    "taylor, least squares": {"method": "taylor", "compensation": "least_squares"} | FFN,
    "flap": {"method": "flap", "compensation": "bias"} | POOLED,
    "llm_surgeon": {"method": "llm_surgeon", "compensation": "least_squares", "shots": 2} | POOLED,
    "trimline": {"method": "trimline", "shots": 2} | POOLED,
    "trimline, flops": {"method": "trimline", "pooled": {"remove": 0.3, "of": "flops", "allow_empty": True}, "round_to": 8},
    "trimline, a target": {"method": "trimline", "target": {"parameters": 0.8}, "round_to": 8, "shots": 2},
    "llm_surgeon, a target": {"method": "llm_surgeon", "target": {"flops": 0.9}, "round_to": 8},
    "depth": {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
    "residual": {"method": "residual_energy", "budget": {"residual": {"remove": 0.25}}, "round_to": 8},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


def recipe(*steps, **calibration) -> PruneSlice:
    return PruneSlice.model_validate({"calibration": {"token_ids": TOKENS} | calibration, "steps": steps})


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def written(stage, dense, wanted, out, **more) -> dict[str, bytes]:
    out.mkdir()
    stage(dense, out, wanted, OPTIONS, out, Events(), **more)
    return files(out)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_plan_from_kept_measurements_is_the_plan_of_measuring_again(step, dense, tmp_path):
    wanted = recipe(step, FFN | {"budget": {"ffn": {"remove": 0.2}}})
    assert measured_part(wanted, Checkpoint(dense).geometry)
    kept = written(measure, dense, wanted, tmp_path / "measured")
    assert kept == written(measure, dense, recipe(another_budget(step)), tmp_path / "again")
    direct = written(prune, dense, wanted, tmp_path / "direct")
    assert written(prune, dense, wanted, tmp_path / "plan", measured=tmp_path / "measured") == direct


def another_budget(step):
    if "target" in step:
        return step | {"target": {"memory": 0.7}, "shots": 1}
    if "pooled" in step:
        return step | {"pooled": step["pooled"] | {"remove": 0.4}, "shots": 1}
    return step | {"budget": {space: {"remove": 0.45} for space in step["budget"]}}


def test_with_kept_measurements_nothing_is_measured_before_the_cut(dense, tmp_path, monkeypatch):
    wanted = recipe(STEPS["cfsp, least squares"])
    written(measure, dense, wanted, tmp_path / "measured")
    monkeypatch.setattr("pipeline.prune.units.sweep", lambda *_, **__: pytest.fail("measured again"))
    assert "plan.json" in written(prune, dense, wanted, tmp_path / "plan", measured=tmp_path / "measured")


def test_what_decides_a_measurement(dense):
    geometry = Checkpoint(dense).geometry
    part = measured_part(recipe(STEPS["flap"]), geometry)
    assert part == measured_part(recipe(STEPS["flap"] | {"pooled": {"remove": 0.9}, "shots": 5}), geometry)
    others = (
        recipe(STEPS["flap"] | {"compensation": "none"}),
        recipe(STEPS["flap"] | {"options": {"metric": "IFV"}}),
        recipe(STEPS["flap"] | {"pooled": {"remove": 0.3, "of": "flops"}}),
        recipe(STEPS["flap"], token_ids=TOKENS[1:]),
        recipe(STEPS["llm_surgeon"]),
    )
    parts = [part, *(measured_part(other, geometry) for other in others)]
    assert all(left != right for place, left in enumerate(parts) for right in parts[:place])


@pytest.mark.parametrize(
    "step",
    [
        {"method": "wanda", "budget": {"weight": {"remove": 0.5}}},
        {"method": "llm_surgeon", "budget": {"weight": {"remove": 0.5}}},
        {"method": "laco", "budget": {"layer": {"keep": 3}}},
    ],
    ids=lambda step: step["method"],
)
def test_what_is_measured_on_the_way_is_not_kept(step, dense):
    assert measured_part(recipe(step), Checkpoint(dense).geometry) is None


def test_statistics_that_are_too_large_are_not_kept(dense):
    geometry = Checkpoint(dense).geometry
    wide = geometry.with_blocks(tuple(replace(block, ffn=16384) for block in geometry.blocks))
    assert 4 * 16384**2 * len(wide.blocks) > LARGEST
    assert measured_part(recipe(STEPS["cfsp, least squares"]), wide) is None
    assert measured_part(recipe(STEPS["cfsp"]), wide) is not None
    assert measured_part(recipe(STEPS["cfsp, sequential"]), wide) is not None


def test_no_statistic_is_left_out():
    """A field that is added to the statistics has to be kept too."""
    assert set(BlockStatistics.__dataclass_fields__) == {
        "tokens",
        "chosen",
        "sequences",
        "distance",
        "influence",
        "inputs",
        "gradients",
        "routed",
    }
