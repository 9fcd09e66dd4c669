"""Targets: the integer program against brute force, the table's predictions, and what every kind of method makes of a target."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

import pipeline.prune.allocation.program
from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape
from pipeline.architecture.spaces import SUBLAYERS, IndexSet, Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.selection import Selection
from pipeline.prune.allocation.program import Choice, least_loss
from pipeline.prune.allocation.targeted import Aim, best_sizes, by_scores, size_grid
from pipeline.prune.allocation.targets import bounds, measures, part_of
from pipeline.prune.consumer import Consumer
from pipeline.prune.latency import Entry, LatencyTable, Times, identity
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep, Target
from pipeline.prune.stage import check_targets, make_plan
from pipeline.prune.steps import resolve_steps
from tests.tiny import tiny_model

WINDOWS = torch.randint(4, 100, (8, 32), generator=torch.Generator().manual_seed(3))
DECODE = Times(0.004, (0.0, 0.002, 0.003), (0, 8, 48, 96), (0.0, 0.001, 0.003, 0.005))
PREFILL = Times(0.01, (0.0, 0.01, 0.02), (0, 8, 48, 96), (0.0, 0.004, 0.02, 0.04))


def table(geometry) -> LatencyTable:
    return LatencyTable(identity(geometry), {}, (Entry("8/5", "prefill", 4, PREFILL), Entry("8/5", "decode", 4, DECODE)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def dense(folder):
    return Checkpoint(folder).geometry


def planned(folder, *steps):
    """The plan of some steps, and the geometry that it leaves."""
    recipe = PruneSlice.model_validate({"steps": steps})
    checkpoint = Checkpoint(folder)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), checkpoint)
    plan = make_plan(model, WINDOWS, recipe, Events(), Consumer(table(checkpoint.geometry)))
    return plan, plan.geometry(checkpoint.geometry)


# --- the program -----------------------------------------------------------------------------------------------------


def brute_force(choices, limits):
    """The least loss of all combinations that keep every bound; None where none does."""
    best = None
    for places in product(*(range(len(choice.sizes)) for choice in choices.values())):
        picked = list(zip(choices.values(), places, strict=True))
        if all(sum(choice.costs[name][place] for choice, place in picked) <= limit for name, limit in limits.items()):
            loss = sum(choice.losses[place] for choice, place in picked)
            best = loss if best is None else min(best, loss)
    return best


def instance(seed: int, measures_: tuple[str, ...]) -> dict[int, Choice]:
    generator = torch.Generator().manual_seed(seed)
    choices = {}
    for key in range(5):
        sizes = tuple(range(4, 0 if key % 2 else -1, -1))
        losses = [0.0, *torch.rand(len(sizes) - 1, generator=generator).cumsum(0).tolist()]
        costs = {name: torch.rand(len(sizes), generator=generator).sort(descending=True).values.tolist() for name in measures_}
        choices[key] = Choice(sizes, losses, costs)
    return choices


@pytest.mark.parametrize("names", [("parameters",), ("parameters", "flops")])
@pytest.mark.parametrize("seed", range(8))
def test_the_program_finds_what_trying_everything_finds(seed: int, names: tuple[str, ...]) -> None:
    choices = instance(seed, names)
    dense = {name: sum(choice.costs[name][0] for choice in choices.values()) for name in names}
    for share in (0.3, 0.6, 0.9, 1.0):
        limits = {name: dense[name] * min(1.0, share * (1 + 0.2 * number)) for number, name in enumerate(names)}
        found, best = least_loss(choices, limits), brute_force(choices, limits)
        if best is None:
            assert found is None
            continue
        assert found is not None
        places = {key: choices[key].sizes.index(size) for key, size in found.items()}
        assert all(sum(choices[key].costs[name][place] for key, place in places.items()) <= limits[name] for name in names)
        assert sum(choices[key].losses[place] for key, place in places.items()) == pytest.approx(best, rel=1e-4)


def test_two_bounds_are_harder_than_either() -> None:
    """Parameters and FLOPs together, as in FALCON: each bound alone leaves the other broken."""
    choices = {
        "narrow": Choice((1, 0), (0.0, 1.0), {"parameters": (10, 0), "flops": (1, 0)}),
        "deep": Choice((1, 0), (0.0, 1.1), {"parameters": (1, 0), "flops": (10, 0)}),
        "both": Choice((1, 0), (0.0, 1.9), {"parameters": (6, 0), "flops": (6, 0)}),
    }
    assert least_loss(choices, {"parameters": 7.0}) == {"narrow": 0, "deep": 1, "both": 1}
    assert least_loss(choices, {"flops": 7.0}) == {"narrow": 1, "deep": 0, "both": 1}
    assert least_loss(choices, {"parameters": 12.0, "flops": 12.0}) == {"narrow": 1, "deep": 1, "both": 0}
    assert least_loss(choices, {"parameters": -1.0}) is None


def test_a_solver_that_gives_up_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_up = SimpleNamespace(x=None, fun=None, status=1, message="Time limit reached.")
    monkeypatch.setattr(pipeline.prune.allocation.program, "milp", lambda *_, **__: gave_up)
    choices = {"a": Choice((2, 1), (0.0, 1.0), {"parameters": (2.0, 1.0)})}
    with pytest.raises(TrimlineError, match=r"The solver ended without sizes \(Time limit reached.\)"):
        least_loss(choices, {"parameters": 1.5})


def test_equal_losses_and_bounds_met_to_the_last_digit_keep_the_bound() -> None:
    choices = {key: Choice((3, 2, 1), (0.0, 1.0, 2.0), {"time": (0.3, 0.2, 0.1)}) for key in range(6)}
    for limit in (0.6, 0.9, 1.2, 1.5 - 1e-12, 1.8):
        found = least_loss(choices, {"time": limit})
        if found is None:  # 6 times 0.1 is a little more than 0.6
            assert limit < sum([0.1] * 6)
            continue
        assert sum({3: 0.3, 2: 0.2, 1: 0.1}[size] for size in found.values()) <= limit
    whole = {key: Choice((3, 2, 1), (0.0, 1.0, 2.0), {"parameters": (3e9 + 1, 2e9, 1e9)}) for key in range(4)}
    assert least_loss(whole, {"parameters": 4e9}) == dict.fromkeys(range(4), 1)
    assert least_loss(whole, {"parameters": 12e9 + 4}) == dict.fromkeys(range(4), 3)


def test_sizes_go_down_in_tiles_to_one_or_to_none() -> None:
    assert size_grid(96, 32, empty=False) == [96, 64, 32]
    assert size_grid(100, 32, empty=True) == [100, 96, 64, 32, 0]
    assert size_grid(3, 1, empty=False) == [3, 2, 1]
    assert size_grid(20, 32, empty=False) == [20]


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_prediction_adds_up_what_the_sublayers_take(dense) -> None:
    shapes = dense.with_blocks((BlockShape(96, 2), BlockShape(0, 1), BlockShape(28, 0), BlockShape(3, 0)))
    assert table(dense).predict(shapes, "decode") == pytest.approx(0.004 + 0.005 + 0.003 + 0.002 + 0.002 + 0.001)
    request = table(dense).predict(shapes, "8/5")
    assert request == pytest.approx(table(dense).predict(shapes, "prefill") + 4 * table(dense).predict(shapes, "decode"))


def test_times_never_fall_as_sizes_rise(dense) -> None:
    for times in (DECODE, PREFILL):
        curve = [times.sublayer(Sublayer.FFN, width) for width in range(97)]
        assert curve == sorted(curve)
        with pytest.raises(ValueError, match="more than were measured"):
            times.sublayer(Sublayer.FFN, 97)


def test_a_table_is_read_as_it_was_written(dense, tmp_path) -> None:
    table(dense).write(tmp_path)
    assert LatencyTable.read(tmp_path) == table(dense)
    (tmp_path / "latency.json").write_text('{"format": 1, "model": {}, "setting": {}, "entries": [{"workload": "8/5"}]}')
    with pytest.raises(TrimlineError, match="no latency table"):
        LatencyTable.read(tmp_path)


def test_a_table_refuses_other_models_and_unknown_workloads(dense, tmp_path) -> None:
    other = Checkpoint(tiny_model("llama", tmp_path / "other", hidden_size=32)).geometry
    with pytest.raises(TrimlineError, match="hidden is 64"):
        table(dense).predict(other, "decode")
    with pytest.raises(TrimlineError, match="no workload '512/1'") as refused:
        table(dense).times("512/1")
    assert "decode" in refused.value.remedy


# --- what a target bounds --------------------------------------------------------------------------------------------


def test_measures_are_those_of_the_geometry(dense) -> None:
    shapes = dense.with_blocks((BlockShape(96, 2), BlockShape(0, 1), BlockShape(28, 0)))
    target = Target(parameters=0.5, flops=1e5, memory=0.5, latency_ms=3.0, context=100)
    found = measures(target, dense, Consumer(table(dense), 2.0, 2.0))
    assert found["parameters"].whole(shapes) == shapes.total_parameters()
    assert found["flops"].whole(shapes) == shapes.decoder_flops(100)
    assert found["memory"].whole(shapes) == 2 * shapes.total_parameters() + 100 * shapes.kv_bytes_per_token(2)
    assert found["latency_ms"].whole(shapes) == pytest.approx(1e3 * table(dense).predict(shapes, "decode"))
    limits = bounds(target, dense, Consumer(table(dense), 2.0, 2.0))
    assert limits["parameters"] == dense.total_parameters() / 2
    assert (limits["flops"], limits["latency_ms"]) == (1e5, 3.0)
    assert bounds(Target(speedup=2.0, latency_ms=1e6), dense, Consumer(table(dense)))["latency_ms"] == pytest.approx(18.0)


def test_a_shot_has_a_part_of_every_bound(dense) -> None:
    consumer = Consumer(table(dense))
    target = Target(speedup=2.0, parameters=0.8)
    half = part_of(target, 0.5, dense, dense, consumer)
    assert half.speedup is None
    assert half.latency_ms == pytest.approx(27.0)  # between 36 and 18
    assert bounds(half, dense, consumer)["parameters"] == pytest.approx(0.9 * dense.total_parameters())
    assert bounds(part_of(target, 1.0, dense, dense, consumer), dense, consumer) == bounds(target, dense, consumer)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({}, "a target states one of"),
        ({"speedup": 1.0}, "greater than 1"),
        ({"speedup": 1.5, "spaces": ["residual"]}, "a target is met in"),
        ({"speedup": 1.5, "spaces": ["layer", "ffn"]}, "a target is met in"),
        ({"parameters": 0}, "greater than 0"),
    ],
)
def test_wrong_targets_are_refused(wrong, why) -> None:
    with pytest.raises(ValidationError, match=why):
        Target(**wrong)


def test_a_step_states_one_thing() -> None:
    for wrong in (
        {},
        {"target": {"speedup": 1.5}, "pooled": {"remove": 0.2}},
        {"target": {"flops": 0.5}, "budget": {"ffn": {"remove": 0.2}}},
    ):
        with pytest.raises(ValidationError, match="exactly one of 'budget', 'pooled' and 'target'"):
            PruneStep(**wrong)
    with pytest.raises(ValidationError, match="belongs to a target"):
        PruneStep(budget={"ffn": {"remove": 0.2}}, allocation="optimal")


def test_a_target_of_time_needs_a_table_and_one_of_memory_a_width(dense) -> None:
    with pytest.raises(TrimlineError, match="there is no latency table"):
        measures(Target(speedup=1.5), dense, Consumer())
    with pytest.raises(TrimlineError, match="several widths"):
        measures(Target(memory=0.5), dense, Consumer(weight_bytes=None))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_with_one_bound_on_parameters_scores_are_sorted_as_the_pooled_rule_sorts_them(dense) -> None:
    """A unit counts for its score times its parameters, so what stays scores more than what goes; negative scores too."""
    generator = torch.Generator().manual_seed(5)
    scores = {
        Space.FFN: {block: torch.randn(96, generator=generator) for block in range(4)},
        Space.KV_GROUP: {block: torch.randn(2, generator=generator) for block in range(4)},
    }
    step = PruneStep(method="flap", target=Target(parameters=0.6), round_to=1, allocation="optimal")
    aim = Aim(step.target, Selection.everything(dense), dense, Consumer())
    counts, facts = by_scores(aim, step, scores, additive=False)
    assert facts["target"]["parameters"]["found"] <= 0.6 * dense.total_parameters()
    ranked = [scores[Space.FFN][block].sort(descending=True).values for block in range(4)]
    worst_kept = min(float(score[counts[IndexSet(Space.FFN, block)] - 1]) for block, score in enumerate(ranked))
    best_gone = max(
        float(score[counts[IndexSet(Space.FFN, block)]]) for block, score in enumerate(ranked) if counts[IndexSet(Space.FFN, block)] < 96
    )
    assert best_gone - worst_kept < 0.3  # whole groups do not divide the budget; but for that it is one threshold


def test_the_best_sizes_are_those_of_brute_force(dense) -> None:
    losses = {}
    generator = torch.Generator().manual_seed(1)
    for block in range(4):
        for space, sizes in ((Space.FFN, (96, 48, 8)), (Space.KV_GROUP, (2, 1))):
            losses[IndexSet(space, block)] = dict(zip(sizes, [0.0, *torch.rand(2, generator=generator).cumsum(0).tolist()], strict=False))
    consumer = Consumer(table(dense))
    aim = Aim(Target(speedup=1.5, parameters=0.75), Selection.everything(dense), dense, consumer)
    tried = [aim.after(dict(zip(losses, sizes, strict=True))) for sizes in product(*losses.values())]
    loss = lambda shape: sum(by_size[shape.blocks[n].units(SUBLAYERS[space])] for (space, n), by_size in losses.items())  # noqa: E731
    best = min(loss(shape) for shape in tried if aim.is_met(shape))
    found = aim.after(best_sizes(aim, losses))
    assert aim.is_met(found)
    assert loss(found) == pytest.approx(best, rel=1e-4)


def test_what_no_sizes_meet_is_refused_before_anything_is_measured(dense) -> None:
    for target, words in (
        ({"speedup": 3.0}, "2.25 times as fast at most"),
        ({"parameters": 0.01}, "parameters is"),
        ({"parameters": 9e9}, ""),
    ):
        recipe = PruneSlice.model_validate({"steps": [{"method": "trimline", "target": target, "round_to": 8}]})
        steps = resolve_steps(recipe, Consumer(table(dense)))
        if not words:
            check_targets(steps, dense)
            continue
        with pytest.raises(TrimlineError, match=words):
            check_targets(steps, dense)


def test_flap_with_heads_by_number_takes_no_target() -> None:
    step = {"method": "flap", "target": {"parameters": 0.8}, "options": {"structure": "AL-MM", "remove_heads": 2}}
    with pytest.raises(TrimlineError, match="leaves that open"):
        resolve_steps(PruneSlice.model_validate({"steps": [step]}))


def test_sizes_after_counts_go_by_original_blocks(dense) -> None:
    left = replace(Selection.everything(dense), blocks=(0, 2, 3)).with_units(Sublayer.FFN, 2, range(40))
    aim = Aim(Target(parameters=0.5), left, dense, Consumer())
    shapes = aim.after({IndexSet(Space.FFN, 3): 8, IndexSet(Space.KV_GROUP, 2): 0}).blocks
    assert shapes == (dense.blocks[0], BlockShape(40, 0), BlockShape(8, dense.blocks[3].kv_groups))
    assert aim.after({IndexSet(Space.LAYER, block): int(block != 2) for block in left.blocks}).blocks == (dense.blocks[0], dense.blocks[3])


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        {"method": "trimline"},
        {"method": "trimline", "shots": 3},
        {"method": "trimline", "target": {"speedup": 1.3, "flops": 0.7}},
        {"method": "cfsp"},
        {"method": "cfsp", "shots": 2},
        {"method": "cfsp", "allocation": "optimal"},
        {"method": "cfsp_extended"},
        {"method": "magnitude"},
        {"method": "wanda_sp", "compensation": "least_squares"},
        {"method": "flap", "compensation": "bias"},
        {"method": "flap", "allocation": "optimal"},
        {"method": "flap", "options": {"structure": "UL-UM"}},
        {"method": "llm_surgeon", "shots": 2},
        {"method": "llm_surgeon", "allocation": "optimal"},
        {"method": "block_influence", "target": {"speedup": 1.25}},
        {"method": "laco", "options": {"layers": 2, "lowest": 0}, "target": {"speedup": 1.25}},
    ],
    ids=lambda step: "-".join(map(str, step.values())),
)
def test_every_structured_method_meets_a_target(folder, dense, step) -> None:
    step = {"target": {"speedup": 1.3}, "round_to": 8} | step
    plan, result = planned(folder, step)
    found = table(dense)
    reached = found.predict(dense, "decode") / found.predict(result, "decode")
    assert reached >= step["target"]["speedup"]
    coarse = step["method"] in ("block_influence", "laco") or "options" in step  # whole blocks, or a group of every block at once
    assert reached < (1.6 if coarse else 1.42)
    if "flops" in step["target"]:
        assert result.decoder_flops(512) <= step["target"]["flops"] * dense.decoder_flops(512)
    assert sum(len(blocks) for blocks in plan.selection.ffn) < 4 * 96 or result.blocks != dense.blocks
    again, _ = planned(folder, step)
    assert again.selection == plan.selection


def test_a_second_step_counts_what_the_first_left(folder, dense) -> None:
    _, result = planned(
        folder,
        {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
        {"method": "trimline", "target": {"parameters": 0.5}, "round_to": 8},
    )
    assert len(result.blocks) == 3
    assert 0.4 * dense.total_parameters() < result.total_parameters() <= 0.5 * dense.total_parameters()


def test_a_target_that_is_met_already_removes_nothing(folder, dense) -> None:
    for method in ("trimline", "cfsp"):
        _, result = planned(folder, {"method": method, "target": {"parameters": 1.0}, "round_to": 8})
        assert result.blocks == dense.blocks


def test_blocks_become_empty_where_that_is_allowed(folder, dense) -> None:
    step = {"method": "trimline", "round_to": 8, "target": {"latency_ms": 9.0}}
    with pytest.raises(TrimlineError, match="cannot be met"):
        planned(folder, step)
    _, result = planned(folder, step | {"target": {"latency_ms": 9.0, "allow_empty": True}})
    assert any(0 in (block.ffn, block.kv_groups) for block in result.blocks)


@pytest.mark.parametrize(
    ("step", "nearest"),
    [
        ({"method": "trimline", "target": {"speedup": 3.0}}, "speedup 2.25"),  # 36 ms over 4 + 4 (2 + 1)
        ({"method": "trimline", "target": {"speedup": 1.1, "flops": 0.01}}, "flops 0."),
        ({"method": "cfsp", "target": {"speedup": 3.0}}, "speedup 1.8"),
        ({"method": "block_influence", "target": {"latency_ms": 5.0}}, "latency_ms 12"),
        ({"method": "laco", "target": {"latency_ms": 5.0}}, "latency_ms 12"),
        ({"method": "wanda_sp", "target": {"speedup": 9.0}}, "speedup 2.2"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["method"],
)
def test_what_cannot_be_met_is_said_with_the_nearest_that_can(folder, step, nearest) -> None:
    with pytest.raises(TrimlineError, match="cannot be met") as refused:
        planned(folder, step | {"round_to": 8})
    assert nearest in refused.value.remedy, refused.value.remedy


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ({"speedup": 3.0}, "Ask for speedup 2.25, let"),
        ({"speedup": 3.0, "latency_ms": 40.0}, "Ask for speedup 2.25, to be had together with latency_ms 40, let"),
        ({"speedup": 1.2, "latency_ms": 9.0}, "Ask for latency_ms 16, to be had together with speedup 1.2, let"),
        ({"speedup": 3.0, "flops": 0.01}, "Ask for speedup 2.25 and flops {flops}, to be had together, let"),
        (
            {"latency_ms": 9.0, "flops": 0.01, "parameters": 0.99},
            "latency_ms 16 and flops {flops}, to be had together with parameters 0.99,",
        ),
    ],
)
def test_what_is_named_instead_holds_together_and_is_the_nearest(folder, dense, target, remedy) -> None:
    flops = dense.with_blocks((BlockShape(8, 1),) * 4)
    least = math.ceil(1000 * flops.decoder_flops(Target(flops=0.5).context) / dense.decoder_flops(Target(flops=0.5).context)) / 1000
    step = {"method": "trimline", "round_to": 8}
    with pytest.raises(TrimlineError, match="cannot be met") as refused:
        planned(folder, step | {"target": target})
    assert remedy.format(flops=least) in refused.value.remedy
    named = {key: float(value) for key, value in re.findall(r"(speedup|latency_ms|flops|parameters) ([0-9.]*[0-9])", refused.value.remedy)}
    assert set(named) == set(target)
    planned(folder, step | {"target": named})
    for key in (key for key in target if named[key] != target[key]):
        with pytest.raises(TrimlineError, match="cannot be met"):
            planned(folder, step | {"target": named | {key: named[key] * (1.01 if key == "speedup" else 0.99)}})
