"""LaCo: what a merge is, the published walk, the threshold that is found, and the plan that comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.architecture.families import Sublayer
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model
from pipeline.prune.methods.laco import GRID, LaCoOptions, search, state_similarity, walk
from pipeline.prune.model.collapsing import Collapsed, Rule, collapse, collapsed_live, mixed
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from pipeline.sources.recipe import CalibrationWindows
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (6, 24), generator=torch.Generator().manual_seed(3))
SIX = {"num_hidden_layers": 6}
Blocks = tuple[Collapsed, ...]


def fresh(count: int) -> Blocks:
    return tuple(map(Collapsed.of, range(count)))


def shrinking(folder: Path) -> ShrinkingModel:
    return ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))


def recipe(keep: int, **options: Any) -> PruneSlice:
    step: dict[str, Any] = {"method": "laco", "budget": {"layer": {"keep": keep}}, "options": options}
    return PruneSlice(calibration=CalibrationWindows(windows=6, window=24), steps=(PruneStep(**step),))


def test_equation_1_adds_the_differences_of_the_blocks_that_follow() -> None:
    tensors = torch.randn(6, 3, 4)
    inner = collapse(fresh(6)[2:5], "equation")
    expected = tensors[2] + (tensors[3] - tensors[2]) + (tensors[4] - tensors[2])
    torch.testing.assert_close(mixed(inner, tensors.__getitem__), expected)
    outer = collapse((Collapsed.of(1), inner, Collapsed.of(5)), "equation")
    again = tensors[1] + (expected - tensors[1]) + (tensors[5] - tensors[1])
    torch.testing.assert_close(mixed(outer, tensors.__getitem__), again)
    assert (outer.base, outer.covers) == (1, (1, 2, 3, 4, 5))


def test_released_code_subtracts_from_what_it_adds_to() -> None:
    tensors = torch.randn(6, 3, 4)
    merged = tensors[1].clone()
    for following in tensors[2:5]:
        merged += following - merged
    blocks = collapse(fresh(6)[1:5], "released")
    torch.testing.assert_close(mixed(blocks, tensors.__getitem__), merged)
    nested = collapse((Collapsed.of(0), blocks), "released")
    torch.testing.assert_close(mixed(nested, tensors.__getitem__), tensors[4])


def test_similarity_is_of_whole_windows() -> None:
    before, after = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    cosines = [(a.flatten() @ b.flatten() / (a.norm() * b.norm())).item() for a, b in zip(before, after, strict=True)]
    assert state_similarity(before, after) == pytest.approx(sum(cosines) / 3, abs=1e-6)
    after[1, 2, 3] = torch.nan
    assert state_similarity(before, after) == -1.0


def drawn(seed: int) -> Callable[[Blocks], float]:
    """A similarity that falls with every merge, and otherwise by chance."""

    def similarity(blocks: Blocks) -> float:
        chance = random.Random(f"{seed}{[block.covers for block in blocks]}").random()
        return 1 - 0.02 * (24 - len(blocks)) - 0.5 * chance

    return similarity


class Asked:
    """A similarity, and what was asked of it."""

    def __init__(self, similarity: Callable[[Blocks], float]) -> None:
        self.similarity = similarity
        self.answers: list[tuple[Blocks, float]] = []

    def __call__(self, blocks: Blocks) -> float:
        self.answers.append((blocks, self.similarity(blocks)))
        return self.answers[-1][1]


def published_walk(
    count: int, similarity: Callable[[Blocks], float], highest: int, lowest: int, layers: int, interval: int, least: float
) -> Blocks:
    """The notebooks' loop, written out on a list of blocks."""
    model, place = list(fresh(count)), highest - layers
    while place >= lowest:
        follow = min(layers - 1, len(model) - place - 1)
        tried = [*model[:place], collapse(model[place : place + follow + 1], "released"), *model[place + follow + 1 :]]
        if similarity(tuple(tried)) > least:
            model, place = tried, place - interval
            if place >= len(model):
                place = len(model) - 1 - layers
        else:
            place -= 1
    return tuple(model)


@pytest.mark.parametrize("seed", range(12))
def test_walk_is_the_published_one(seed: int) -> None:
    chance = random.Random(seed)
    layers, interval, lowest, highest = chance.randint(2, 7), chance.randint(1, 4), chance.randint(0, 3), chance.randint(20, 24)
    threshold = chance.uniform(0.4, 0.8)
    options = LaCoOptions(layers=layers, interval=interval, lowest=lowest, highest=highest)
    ours, theirs = Asked(drawn(seed)), Asked(drawn(seed))
    found = walk(fresh(24), ours, threshold, 1, options)
    assert found.blocks == published_walk(24, theirs, highest, lowest, layers, interval, threshold)
    assert ours.answers == theirs.answers  # the same trials, so the same were not enough
    assert len(found.blocks) == 24 or found.similarity == drawn(seed)(found.blocks) > threshold


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep", [20, 17])
def test_the_threshold_meets_the_budget_and_the_next_one_up_does_not(seed: int, keep: int) -> None:
    options = LaCoOptions(layers=4, interval=1)
    found, threshold = search(fresh(24), drawn(seed), keep, options)
    assert len(found.blocks) == keep
    assert sorted(number for block in found.blocks for number in block.covers) == list(range(24))
    assert found == walk(fresh(24), drawn(seed), threshold, keep, options)
    assert round(threshold / GRID) == pytest.approx(threshold / GRID)
    assert len(walk(fresh(24), drawn(seed), threshold + GRID, keep, options).blocks) > keep


def test_the_largest_such_threshold_is_found_where_less_always_merges_more() -> None:
    options = LaCoOptions(layers=4, interval=1)
    found, threshold = search(fresh(24), lambda blocks: 1 - 0.0125 * (24 - len(blocks)), 17, options)
    assert (len(found.blocks), threshold) == (17, pytest.approx(0.91))


def test_a_walk_that_cannot_reach_the_budget_ends_early() -> None:
    unlike = Asked(lambda blocks: 0.0)
    found = walk(fresh(24), unlike, 0.5, 18, LaCoOptions(layers=4, interval=2), give_up=True)
    assert len(found.blocks) == 24
    # Two merges are needed, and from block 2 down there is room for one: places 19 to 3 were tried.
    assert len(unlike.answers) == 17


def test_budgets_that_no_walk_meets_are_refused() -> None:
    with pytest.raises(TrimlineError, match="however low the threshold"):
        search(fresh(24), drawn(0), 4, LaCoOptions(layers=2, interval=8))
    with pytest.raises(TrimlineError, match="At threshold 0.99 the walk does not come to the 20 blocks"):
        search(fresh(24), drawn(0), 20, LaCoOptions(threshold=0.99))


@pytest.mark.parametrize("rule", ["released", "equation"])
@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_rebuilt_model_is_the_merged_one(tmp_path: Path, family: str, rule: Rule) -> None:
    dense = tiny_model(family, tmp_path / "dense", **SIX)
    plan = make_plan(shrinking(dense), WINDOWS, recipe(4, merge=rule, layers=3, lowest=0), Events())
    out = rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
    assert read_json(out / "gate.json")["passed"]
    facts = plan.steps[0].facts
    assert facts["layer"] == {"kept": 4}
    assert len(plan.selection.blocks) == 4

    merged = load_model(dense, dtype=torch.float32)
    live = blocks_of(merged, plan.family)
    for base, covers in facts["collapsed"].items():
        for name, parameter in live[int(base)].named_parameters():
            values = [live[number].get_parameter(name).data for number in covers]
            if rule == "equation":
                parameter.data = values[0] + sum(value - values[0] for value in values[1:])
            elif "norm" not in name:
                parameter.data = values[-1].clone()
    kept = nn.ModuleList(live[block] for block in plan.selection.blocks)
    for slot, block in enumerate(kept):
        block.get_submodule("self_attn").layer_idx = slot  # type: ignore[assignment]
    merged.get_submodule(plan.family.blocks.rpartition(".")[0]).layers = kept
    merged.config.num_hidden_layers = len(kept)
    with torch.inference_mode():
        expected, found = merged(WINDOWS, use_cache=False).logits, load_model(out)(WINDOWS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_similarity_in_the_facts_is_that_of_the_result(tmp_path: Path) -> None:
    dense = tiny_model("llama", tmp_path / "dense", **SIX)
    plan = make_plan(shrinking(dense), WINDOWS, recipe(4, layers=3, lowest=0, windows=4), Events())
    out = rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
    with torch.inference_mode():
        states = [load_model(folder, dtype=torch.float32).model(WINDOWS[:4]).last_hidden_state for folder in (dense, out)]
    facts = plan.steps[0].facts
    assert facts["similarity"] == pytest.approx(state_similarity(*states), abs=1e-4)
    assert facts["similarity"] > facts["threshold"]
    assert facts["tokens"] == 4 * 24


def test_a_trial_leaves_no_trace(tmp_path: Path) -> None:
    model = shrinking(tiny_model("opt", tmp_path, **SIX))
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    blocks = (*fresh(2), collapse(fresh(6)[2:6], "equation"))
    with torch.inference_mode():
        logits = model.model(WINDOWS).logits
        with collapsed_live(model, blocks, "equation"):
            assert not torch.allclose(model.model(WINDOWS, use_cache=False).logits, logits)
        assert torch.equal(model.model(WINDOWS).logits, logits)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.model.named_parameters())


def test_blocks_that_lost_the_same_units_can_be_merged(tmp_path: Path) -> None:
    dense = tiny_model("llama", tmp_path / "dense", **SIX)
    model = shrinking(dense)
    for block in range(6):
        model.keep_units(Sublayer.FFN, block, range(0, 96, 3))
    plan = make_plan(model, WINDOWS, recipe(4, merge="equation", layers=3, lowest=0), Events())
    out = rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
    assert {block.ffn for block in Checkpoint(out).geometry.blocks} == {32}
    with torch.inference_mode():
        states = model.model.get_submodule("model")(WINDOWS, use_cache=False).last_hidden_state
        assert (load_model(out).model(WINDOWS).last_hidden_state - states).abs().max() < 1e-4


def test_blocks_that_differ_are_refused(tmp_path: Path) -> None:
    model = shrinking(tiny_model("llama", tmp_path, **SIX))
    model.keep_units(Sublayer.FFN, 3, range(64))
    with pytest.raises(TrimlineError, match="block 3 keeps other units than block 0"):
        make_plan(model, WINDOWS, recipe(4), Events())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"highest": 4, "layers": 4}}, "is empty"),
        ({"shots": 2}, "in one shot"),
        ({"compensation": "least_squares"}, "without compensation"),
        ({"options": {"layers": 1}}, "layers"),
        ({"budget": {"ffn": {"remove": 0.5}}}, "does not score ffn"),
    ],
)
def test_steps_that_make_no_sense_are_refused_before_measuring(change: dict[str, Any], message: str) -> None:
    step: dict[str, Any] = {"method": "laco", "budget": {"layer": {"keep": 4}}} | change
    with pytest.raises(TrimlineError, match=message):
        resolve_steps(PruneSlice(steps=(PruneStep(**step),)))


def test_a_highest_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="highest is 9, and there are 6 blocks"):
        make_plan(shrinking(tiny_model("llama", tmp_path, **SIX)), WINDOWS, recipe(4, highest=9), Events())
