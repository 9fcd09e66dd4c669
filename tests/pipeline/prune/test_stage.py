"""Steps of pruning: numbering stays the original one, each step measures what the one before left, and the plan says all of it."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.architecture.families import Point
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan, prune
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.masked import apply_plan
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (12, 32), generator=torch.Generator().manual_seed(3))
DEPTH = {"method": "block_influence", "budget": {"layer": {"keep": 3}}}
WIDTH = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8}
GROUPS = {"method": "cfsp_extended", "budget": {"kv_group": {"keep": 1}}, "compensation": "least_squares"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


def planned(folder, *steps, windows=WINDOWS):
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    plan = make_plan(model, windows, PruneSlice.model_validate({"steps": steps}), Events())
    return plan, model


def logits(model):
    with torch.inference_mode():
        return model(WINDOWS[:2], use_cache=False).logits


def test_one_step_keeps_the_best_scored(dense):
    plan, _ = planned(dense, WIDTH)
    scores = {block: plan.scores[f"step0.ffn.{block}"] for block in range(4)}
    assert {len(score) for score in scores.values()} == {96}
    assert sum(len(units) for units in plan.selection.ffn) == 4 * 48
    for block, units in enumerate(plan.selection.ffn):
        assert len(units) % 8 == 0
        gone = sorted(set(range(96)) - set(units))
        assert scores[block][list(units)].min() >= scores[block][gone].max()


def test_a_second_step_keeps_the_original_numbers(dense):
    plan, _ = planned(dense, WIDTH, WIDTH)
    first, second = plan.steps
    for block in range(4):
        kept = set(second.kept[f"ffn.{block}"])
        assert kept < set(first.kept[f"ffn.{block}"])
        assert plan.selection.ffn[block] == second.kept[f"ffn.{block}"]
        assert len(plan.scores[f"step1.ffn.{block}"]) == len(first.kept[f"ffn.{block}"])
    assert max(max(units) for units in plan.selection.ffn) > 60  # numbers of the dense model, not of what was left


def test_a_second_step_measures_the_model_that_the_first_left(dense):
    plan, _ = planned(dense, DEPTH, WIDTH)
    (gone,) = set(range(4)) - set(plan.selection.blocks)
    assert f"step1.ffn.{gone}" not in plan.scores
    assert plan.steps[1].facts["block importance"].keys() == {str(block) for block in plan.selection.blocks}
    assert len(plan.selection.ffn[gone]) == 96  # untouched: the block goes as a whole
    model = load_model(dense, dtype=torch.float32)
    del model.model.layers[gone]
    measured = dict(
        sweep(model, Checkpoint(dense).geometry.family, WINDOWS, Needs(distance=True, squares=frozenset({Point.CHANNELS})), Events())
    )
    for position, block in enumerate(plan.selection.blocks):
        assert plan.steps[1].facts["block importance"][str(block)] == pytest.approx(measured[position].mean_distance, rel=1e-5)


def test_the_budget_of_a_second_step_is_of_what_is_left(dense):
    plan, _ = planned(dense, DEPTH, WIDTH)
    assert sum(len(plan.selection.ffn[block]) for block in plan.selection.blocks) == 3 * 48


def test_two_steps_on_the_same_channels_are_not_one(dense):
    solved = WIDTH | {"compensation": "least_squares", "allocation": "uniform"}
    twice = planned(dense, solved, solved)[0]
    once = planned(dense, solved | {"budget": {"ffn": {"remove": 0.75}}})[0]
    assert list(map(len, twice.selection.ffn)) == list(map(len, once.selection.ffn)) == [24] * 4
    assert twice.selection != once.selection  # the second step saw other activations
    assert set(twice.updates) == set(once.updates)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize(
    "steps", [(WIDTH | {"compensation": "least_squares"},), (GROUPS,), (DEPTH, WIDTH, GROUPS)], ids=("ffn", "groups", "all")
)
def test_the_live_model_is_what_the_plan_says(family, steps, tmp_path):
    folder = tiny_model(family, tmp_path)
    plan, model = planned(folder, *steps)
    masked = load_model(folder, dtype=torch.float32)
    apply_plan(masked, Checkpoint(folder), plan)
    torch.testing.assert_close(logits(model.model), logits(masked), atol=1e-4, rtol=0)


def test_least_squares_comes_closer_than_cutting(dense):
    reference = logits(load_model(dense, dtype=torch.float32))
    error = {}
    for compensation in ("none", "least_squares"):
        _, model = planned(dense, WIDTH | {"compensation": compensation, "allocation": "uniform"})
        error[compensation] = (logits(model.model) - reference).square().mean().item()
    assert error["least_squares"] < error["none"]


def test_updates_hold_only_what_changed(dense):
    assert planned(dense, WIDTH)[0].updates == {}
    plan, _ = planned(dense, DEPTH, WIDTH | {"compensation": "least_squares"})
    assert set(plan.updates) == {f"model.layers.{block}.mlp.down_proj.weight" for block in plan.selection.blocks}
    for block in plan.selection.blocks:
        assert plan.updates[f"model.layers.{block}.mlp.down_proj.weight"].shape == (64, len(plan.selection.ffn[block]))


def test_a_plan_does_not_depend_on_chance(dense):
    first, second = (planned(dense, DEPTH, WIDTH | {"compensation": "least_squares"})[0] for _ in range(2))
    assert (first.selection, first.steps) == (second.selection, second.steps)
    assert all(torch.equal(first.updates[name], second.updates[name]) for name in first.updates)


def test_scores_that_are_no_numbers_are_refused(dense):
    model = ShrinkingModel(load_model(dense, dtype=torch.float16), Checkpoint(dense))
    model.model.model.layers[2].mlp.up_proj.weight.data.fill_(3e4)
    with pytest.raises(TrimlineError, match="block 2 .*float16.*float32"):
        make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [WIDTH]}), Events())


@pytest.mark.parametrize(("remove", "kept"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.27, 3)])
def test_blocks_by_fraction(dense, remove, kept):
    step = {"method": "block_influence", "budget": {"layer": {"remove": remove}}}
    assert len(planned(dense, step)[0].selection.blocks) == kept


@pytest.mark.parametrize("remove", [0.1, 0.4, 0.9, 0.99])
def test_fractions_of_blocks_that_cannot_be(dense, remove):
    with pytest.raises(TrimlineError, match="blocks"):
        planned(dense, {"method": "block_influence", "budget": {"layer": {"remove": remove}}})


def test_uniform_widths_never_fall_below_a_tile_in_silence(dense):
    step = WIDTH | {"allocation": "uniform", "round_to": 32}
    assert {len(units) for units in planned(dense, step | {"budget": {"ffn": {"remove": 0.7}}})[0].selection.ffn} == {32}
    with pytest.raises(TrimlineError, match=r"99\.0%.*tiles of 32.*66\.7%"):
        planned(dense, step | {"budget": {"ffn": {"remove": 0.99}}})


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (WIDTH | {"method": "cfps"}, "'cfps'. Did you mean 'cfsp'"),
        (WIDTH | {"budget": {"kv_group": {"keep": 1}}}, "cfsp does not score kv_group; it scores ffn"),
        (DEPTH | {"budget": {"ffn": {"remove": 0.1}}}, "block_influence does not score ffn; it scores layer"),
    ],
)
def test_steps_are_checked_beforehand(step, match):
    with pytest.raises(TrimlineError, match=match):
        resolve_steps(PruneSlice.model_validate({"steps": [copy.deepcopy(WIDTH), step]}))


@pytest.mark.parametrize(("space", "why"), [("kv_group", "q_norm takes its mean over all heads"), ("residual", "share their epsilon")])
def test_what_a_model_cannot_lose_is_refused_before_a_text_is_read(space, why, tmp_path):
    folder = tiny_model("olmo2", tmp_path / "dense")
    method = {"kv_group": "taylor", "residual": "residual_energy"}[space]
    recipe = PruneSlice.model_validate({"steps": [{"method": method, "budget": {space: {"remove": 0.5}}}]})
    with pytest.raises(TrimlineError, match=why):
        prune(folder, tmp_path / "no texts", recipe, RunOptions(threads=1), tmp_path / "plan", Events())
