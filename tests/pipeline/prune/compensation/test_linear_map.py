"""A map in place of blocks: the least squares it is, what it reads, where it is merged, and that the rebuilt model computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.profile import Profile
from pipeline.calibrate.statistics import token_weights
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import open_paged
from pipeline.prune.compensation.linear_map import BlockRun, linear_map, merge_maps, runs_of
from pipeline.prune.compensation.towards_dense import Pull
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import check_spaces, make_plan
from pipeline.prune.steps import resolve_step, resolve_steps
from tests.pipeline.rebuild.cases import rebuilt
from tests.tiny import VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (16, 32), generator=torch.Generator().manual_seed(3))
EXACT = 1e-9  # damping


def step(keep: int, compensation: str = "linear_map", damping: float = EXACT) -> dict[str, Any]:
    return {"method": "block_influence", "budget": {"layer": {"keep": keep}}, "compensation": compensation, "damping": damping}


def planned(folder: Path, stated: dict[str, Any]) -> tuple[Any, ShrinkingModel]:
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [stated]}), Events()), model


def seen(folder: Path, family: Any, block: int, behind: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the dense model, tokens as rows: what a block's FFN writes, the stream that leaves the block, and that behind another one."""
    model, found = load_model(folder, dtype=torch.float32), {}
    layers = model.get_submodule(family.blocks)
    reader = layers[block].get_submodule(family.reader(Sublayer.FFN).name)
    reader.register_forward_hook(lambda _, __, output: found.update(wrote=output))
    layers[block].register_forward_hook(lambda _, __, output: found.update(after=output))
    layers[behind].register_forward_hook(lambda _, __, output: found.update(aim=output))
    with torch.no_grad():
        model(WINDOWS, use_cache=False)
    return tuple(found[name].flatten(0, -2).double() for name in ("wrote", "after", "aim"))


def test_runs_are_found_with_what_stands_before_them() -> None:
    assert runs_of({0, 3, 4, 7}, range(9)) == [BlockRun(0, (1, 2)), BlockRun(4, (5, 6)), BlockRun(7, (8,))]
    assert runs_of({2, 3}, range(6)) == [BlockRun(3, (4, 5))], "before the first nothing stands"
    assert runs_of({0, 5}, (0, 1, 5)) == [BlockRun(0, (1,))], "blocks that went before are no part of a run"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_map_is_the_minimum(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wrote, lag = torch.randn(200, 6, generator=generator), torch.randn(200, 6, generator=generator)
    weight = torch.rand(200, generator=generator) + 0.1 if weighted else torch.ones(200)
    pull = Pull.zeros(6, 6, torch.device("cpu"))
    pull.add(wrote[:90], lag[:90], weight[:90])
    pull.add(wrote[90:], lag[90:], weight[90:])
    root = weight.sqrt()[:, None].double()
    best = torch.linalg.lstsq(root * wrote.double(), root * (wrote + lag).double()).solution.T
    torch.testing.assert_close(linear_map(pull, EXACT), best, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear_map(pull, 1e9), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "opt", "granite", "cohere"])  # plain, biases, a multiplier, sublayers beside each other
@pytest.mark.parametrize("compensation", ["linear_map", "weighted_map"])
def test_the_last_projection_is_the_map_times_what_it_was(family: str, compensation: str, tmp_path: Path) -> None:
    """With one run it is ReplaceMe's: all that is read is the dense model's."""
    folder = tiny_model(family, tmp_path, num_hidden_layers=4)
    plan, model = planned(folder, step(3, compensation))
    ((before, found),) = plan.steps[0].facts["maps"].items()
    run = found["stands for"]
    described, reader = plan.family, plan.family.module(int(before), plan.family.reader(Sublayer.FFN).name)
    wrote, after, aim = seen(folder, described, int(before), run[-1])
    times = model.checkpoint.config.get(described.multiplier_key, 1.0) if described.multiplier_key else 1.0
    root = token_weights(aim.float()).double().sqrt()[:, None] if compensation == "weighted_map" else 1.0
    best = torch.linalg.lstsq(root * wrote, root * (wrote + (aim - after) / times)).solution.T
    dense = Checkpoint(folder)
    expected = best @ dense.tensor(f"{reader}.weight").double()
    torch.testing.assert_close(plan.updates[f"{reader}.weight"].double(), expected, rtol=2e-3, atol=2e-3)
    if f"{reader}.bias" in dense.locations:
        torch.testing.assert_close(
            plan.updates[f"{reader}.bias"].double(), best @ dense.tensor(f"{reader}.bias").double(), rtol=2e-3, atol=2e-3
        )
    left = (root * (after + times * wrote @ (best.T - torch.eye(len(best))) - aim)).square().sum()
    assert found["error left"] == pytest.approx((left / (root * (after - aim)).square().sum()).item(), rel=1e-2)
    assert found["error left"] < 1


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_the_rebuilt_model_computes_it(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "dense", num_hidden_layers=6)
    plan, model = planned(folder, step(3, "weighted_map", 0.01))
    assert plan.steps[0].facts["maps"]
    out = rebuilt(tmp_path, folder, plan, Profile.UNIFORM)
    assert read_json(out / "gate.json")["passed"]
    assert len(Checkpoint(out).geometry.blocks) == 3
    with torch.no_grad():
        smaller = load_model(out, dtype=torch.float32)(WINDOWS[:2], use_cache=False).logits
        torch.testing.assert_close(smaller, model.model(WINDOWS[:2], use_cache=False).logits, rtol=1e-3, atol=1e-3)


def test_several_runs_are_fitted_front_to_back_and_bring_the_stream_nearer(tmp_path: Path) -> None:
    folder, kept = tiny_model("llama", tmp_path, num_hidden_layers=8), [1, 3, 4, 7]
    models = [ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder)) for _ in range(2)]
    with torch.no_grad():
        dense = models[0].model(WINDOWS, use_cache=False).logits
    maps = merge_maps(models[1], WINDOWS, kept, weighted=False, damping=1e-4, events=Events())
    assert {before: found["stands for"] for before, found in maps.items()} == {"1": [2], "4": [5, 6]}
    errors = []
    for model in models:
        model.keep_blocks(kept)
        with torch.no_grad():
            errors.append((model.model(WINDOWS, use_cache=False).logits - dense).square().mean().item())
    assert errors[1] < errors[0]
    wrote, after, aim = seen_of(models[1].model, load_model(folder, dtype=torch.float32), 4, 6)
    lag = aim - after  # what is left of it no map of what the FFN writes could make up for
    assert (lag.T @ wrote).norm() < 1e-2 * lag.norm() * wrote.norm()


def seen_of(pruned: Any, dense: Any, block: int, behind: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the FFN of a block writes in the pruned model and what leaves it; what leaves another block of the dense one."""
    found: dict[str, torch.Tensor] = {}
    layer = pruned.get_submodule(f"model.layers.{block}")
    layer.mlp.down_proj.register_forward_hook(lambda _, __, output: found.update(wrote=output))
    layer.register_forward_hook(lambda _, __, output: found.update(after=output))
    dense.get_submodule(f"model.layers.{behind}").register_forward_hook(lambda _, __, output: found.update(aim=output))
    with torch.no_grad():
        for model in (pruned, dense):
            model(WINDOWS, use_cache=False)
    return found["wrote"].flatten(0, -2).double(), found["after"].flatten(0, -2).double(), found["aim"].flatten(0, -2).double()


def test_a_paged_model_gets_the_same_map(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=5)
    whole, _ = planned(folder, step(3, damping=0.01))
    live, paging = open_paged(folder, RunOptions(dtype="float32", threads=1), torch.float32)
    model = ShrinkingModel(live, Checkpoint(folder), paging)
    paged = make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(3, damping=0.01)]}), Events())
    assert set(paged.updates) == set(whole.updates)
    for name, value in whole.updates.items():
        torch.testing.assert_close(paged.updates[name], value, rtol=1e-4, atol=1e-5)


def test_where_it_cannot_be_merged_it_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("gemma2", tmp_path)
    steps = resolve_steps(PruneSlice.model_validate({"steps": [step(2)]}))
    with pytest.raises(TrimlineError, match="gemma2 has a norm behind its FFN"):
        check_spaces(steps, Checkpoint(folder).geometry)
    with pytest.raises(TrimlineError, match="gemma2 has a norm behind its FFN"):
        planned(folder, step(2))
    with pytest.raises(TrimlineError, match="stands for whole blocks"):
        resolve_step(PruneStep.model_validate({"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "compensation": "linear_map"}))


def test_a_block_without_ffn_takes_no_map(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=4)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    for block in range(4):
        model.keep_units(Sublayer.FFN, block, ())
    with pytest.raises(TrimlineError, match=r"Block \d has no FFN, and a map"):
        make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(2)]}), Events())
