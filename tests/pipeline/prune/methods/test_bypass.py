"""Bypass Back-propagation: the gradient against all masks that can be drawn, the projection, masks against removal, and that it learns."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import SUBLAYERS, IndexSet
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.live.loading import load_model
from pipeline.prune.methods.bypass import masked, policy_gradient, projected, started
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_step
from tests.pipeline.rebuild.cases import rebuilt
from tests.tiny import VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (8, 24), generator=torch.Generator().manual_seed(3))


def step(budget: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {"method": "bypass", "budget": budget or {"ffn": {"remove": 0.5}}, "round_to": 8, "options": {"steps": 4} | options}


def shrinking(folder: Path) -> ShrinkingModel:
    return ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))


@pytest.mark.parametrize("released", [True, False])
def test_the_gradient_is_that_of_the_expected_loss(released: bool) -> None:
    """Over all pairs of masks, each as often as it is drawn; the released form is off by √(s(1 − s))."""
    probabilities = torch.tensor([0.3, 0.8, 0.55], dtype=torch.float64, requires_grad=True)
    every = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    losses = torch.tensor([4.0, 1.0, 3.0, 2.5, 0.5, 2.0, 1.5, 1.0], dtype=torch.float64)
    chances = torch.where(every > 0, probabilities, 1 - probabilities).prod(1)
    (chances @ losses).backward()
    exact = probabilities.grad
    assert exact is not None
    with torch.no_grad():
        drawn = torch.zeros(3, dtype=torch.float64)
        for one, other in product(range(8), repeat=2):
            pair = torch.tensor([one, other])
            drawn += chances[one] * chances[other] * policy_gradient(losses[pair], every[pair], probabilities, 1.7, released)
        # K terms over K − 1: with two masks it is twice the gradient
        expected = 2 * exact * ((probabilities * (1 - probabilities)).sqrt() if released else 1)
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-6)


def test_the_projection_is_the_nearest_within_the_budget() -> None:
    generator = torch.Generator().manual_seed(1)
    free = 1.5 * torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    found = projected(free, 2.0)
    assert found.sum() == pytest.approx(2.0)
    assert bool(((found >= 0) & (found <= 1)).all())
    for _ in range(200):  # no other with that sum is nearer
        other = torch.rand(6, generator=generator, dtype=torch.float64)
        other = projected(other * 3, 2.0)
        assert (found - free).square().sum() <= (other - free).square().sum() + 1e-9
    torch.testing.assert_close(projected(torch.tensor([0.2, -0.5, 1.3]), 5.0), torch.tensor([0.2, 0.0, 1.0]))


def test_the_start_follows_the_metric_and_meets_the_share() -> None:
    metric = torch.tensor([1.0, 4.0, 2.0, 3.0])
    found = started(metric, 0.6)
    assert found.mean() == pytest.approx(0.6)
    assert found.argsort().tolist() == metric.argsort().tolist()
    assert started(torch.tensor([2.0]), 0.4).tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("family", ["llama", "opt", "qwen2"])
def test_a_mask_computes_what_removal_leaves(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path, num_hidden_layers=3)
    model, removed = shrinking(folder), shrinking(folder)
    masks, generator = {}, torch.Generator().manual_seed(0)
    for space, sublayer in SUBLAYERS.items():
        for block in range(3):
            mask = torch.rand(model.geometry.blocks[block].units(sublayer), generator=generator) < 0.5
            masks[IndexSet(space, block)] = mask.double() * (block != 1)  # of block 1 nothing stays
            removed.keep_units(sublayer, block, tuple(masks[IndexSet(space, block)].nonzero().flatten().tolist()))
    with torch.no_grad():
        before = model.model(WINDOWS, use_cache=False).logits
        with masked(model, masks):
            found = model.model(WINDOWS, use_cache=False).logits
        torch.testing.assert_close(found, removed.model(WINDOWS, use_cache=False).logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.model(WINDOWS, use_cache=False).logits, before)


def test_it_learns_what_the_loss_says(tmp_path: Path) -> None:
    """From even probabilities: what stays predicts better than what a start alone would keep."""
    folder = tiny_model("llama", tmp_path, num_hidden_layers=2, intermediate_size=32)
    with torch.no_grad():
        memorised = load_model(folder, dtype=torch.float32)(WINDOWS, use_cache=False).logits.argmax(-1)
    windows = torch.cat((WINDOWS[:, :1], memorised[:, :-1]), dim=1)  # near to what the dense model itself predicts

    def loss(steps: int) -> float:
        model = shrinking(folder)
        asked = step(steps=steps, start="even", learning_rate=0.05, samples=4, windows=8)
        plan = make_plan(model, windows, PruneSlice.model_validate({"steps": [asked]}), Events())
        assert sum(map(len, plan.selection.ffn)) == 32
        with torch.no_grad():
            logits = model.model(windows, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()

    assert loss(150) < loss(1)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_was_learned_is_rebuilt(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "dense")
    both = {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.25}}
    model = shrinking(folder)
    plan = make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(both) | {"compensation": "least_squares"}]}), Events())
    dense = model.geometry.blocks
    assert sum(map(len, plan.selection.ffn)) == sum(block.ffn for block in dense) // 2
    assert sum(map(len, plan.selection.kv_groups)) == 3 * sum(block.kv_groups for block in dense) // 4
    assert {name.partition(".")[2].partition(".")[0] for name in plan.scores} == {"ffn", "kv_group"}
    assert read_json(rebuilt(tmp_path, folder, plan, Profile.FREE) / "gate.json")["passed"]


def test_a_seed_gives_the_same_again_and_another_something_else(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=2)
    found = [
        make_plan(shrinking(folder), WINDOWS, PruneSlice.model_validate({"steps": [step(seed=seed, start="even", steps=8)]}), Events())
        for seed in (0, 0, 1)
    ]
    assert found[0].selection == found[1].selection
    assert found[0].steps[0].facts == found[1].steps[0].facts
    assert found[0].selection != found[2].selection


@pytest.mark.parametrize(
    "stated",
    [
        step({"ffn": {"keep": 16}}),
        step() | {"shots": 2},
        {"method": "bypass", "pooled": {"remove": 0.3}},
        {"method": "bypass", "target": {"parameters": 0.8}},
    ],
)
def test_what_is_not_a_share_in_one_shot_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(TrimlineError, match="learns which share of each space goes"):
        resolve_step(PruneStep.model_validate(stated))


def test_masks_that_predict_nothing_are_refused(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=2)
    model = shrinking(folder)
    with torch.no_grad():
        model.model.lm_head.weight[0] = torch.nan
    with pytest.raises(TrimlineError, match="not finite|NaN"):
        make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step()]}), Events())
