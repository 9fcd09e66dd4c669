"""Wanda and magnitude: against the authors' code, and against loops over weights and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.statistics import BlockStatistics, activation_norm
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.prune.methods.magnitude import Magnitude, magnitude_mask
from pipeline.prune.methods.method import BlockView
from pipeline.prune.methods.wanda import MOST_ALPHA, TOLERANCE, alpha_mask, unit_score, wanda_score
from pipeline.prune.model.masks import Pattern, row_mask
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_step
from tests.pipeline.rebuild.cases import rebuilt
from tests.pipeline.units import parts_of_units
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (6, 32), generator=torch.Generator().manual_seed(3))
GOLDEN = {"unstructured": "unstructured50", "2:4": "nm24", "4:8": "nm48"}


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "wanda.safetensors")


def test_published_score(published: dict[str, torch.Tensor]) -> None:
    inputs = published["inputs"]
    squares = inputs.square().sum((0, 1))
    torch.testing.assert_close(squares / len(inputs), published["scaler_row"], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        wanda_score(published["weight"], activation_norm(squares, len(inputs))), published["score"], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("pattern", GOLDEN)
def test_published_masks(published: dict[str, torch.Tensor], pattern: str) -> None:
    squares = published["inputs"].square().sum((0, 1))
    scores = wanda_score(published["weight"], activation_norm(squares, len(published["inputs"])))
    assert torch.equal(row_mask(scores, Pattern.parse(pattern), 0.5), published[f"{GOLDEN[pattern]}.pruned_mask"])


def test_score_token_by_token() -> None:
    inputs, weight = torch.randn(3, 5, 4), torch.randn(2, 4)
    expected = torch.zeros(2, 4)
    for row in range(2):
        for column in range(4):
            lengths = [sum(token[column] ** 2 for token in sequence) for sequence in inputs]
            expected[row, column] = weight[row, column].abs() * (sum(lengths) / 3) ** 0.5
    norm = activation_norm(inputs.square().sum((0, 1)), 3)
    torch.testing.assert_close(wanda_score(weight, norm), expected)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7])
def test_the_alpha_variant_cuts_every_row_at_one_share(fraction: float) -> None:
    scores = (0.2 + torch.rand(32, 200)) * torch.rand(32, 1)
    found = alpha_mask(scores, fraction)
    assert abs(found.float().mean().item() - fraction) <= TOLERANCE
    assert len(set(found.sum(1).tolist())) > 1
    lowest, highest = 0.0, MOST_ALPHA  # the shares that would give each row just this
    for row, gone in zip(scores.tolist(), found.tolist(), strict=True):
        ordered, count = sorted(row), sum(gone)
        assert sorted(score for score, went in zip(row, gone, strict=True) if went) == ordered[:count]
        lowest = max(lowest, sum(ordered[:count]) / sum(row))
        highest = min(highest, sum(ordered[: count + 1]) / sum(row))
    assert lowest <= highest


def test_the_alpha_variant_ends_where_the_fraction_is_out_of_reach() -> None:
    scores = torch.ones(4, 10)
    assert alpha_mask(scores, 0.95).sum(1).tolist() == [7] * 4  # just below 0.8 of the sum: 7 of 10, never more
    assert alpha_mask(scores, 0.0).sum() == 0


@pytest.mark.parametrize("width", [1, 3])
def test_structured_score_is_summed_over_the_channels_of_a_unit(width: int) -> None:
    reader, norm = torch.randn(5, 12), torch.rand(12)
    expected = [
        sum(norm[unit * width + place] * sum(abs(reader[row, unit * width + place]) for row in range(5)) / 5 for place in range(width))
        for unit in range(12 // width)
    ]
    torch.testing.assert_close(unit_score(reader, norm, width), torch.stack(expected))


def test_magnitude_compares_the_whole_matrix_or_a_group() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3, -0.4], [5.0, -6.0, 7.0, -8.0]])
    assert magnitude_mask(weight, Pattern(), 0.5).tolist() == [[True] * 4, [False] * 4]
    assert magnitude_mask(weight, Pattern.parse("2:4"), 0.5).tolist() == [[True, True, False, False]] * 2


def structured(method: str, space: Space, **more: Any) -> PruneStep:
    return PruneStep.model_validate({"method": method, "budget": {space: {"remove": 0.5}}, "round_to": 8} | more)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize("space", [Space.FFN, Space.KV_GROUP])
@pytest.mark.parametrize("score", ["reader", "product"])
def test_structured_magnitude(tmp_path: Path, family: str, space: Space, score: str) -> None:
    checkpoint = Checkpoint(tiny_model(family, tmp_path))
    geometry, block = checkpoint.geometry, 1

    def weight(name: str) -> torch.Tensor:
        return checkpoint.tensor(geometry.family.module(block, name) + ".weight")

    sublayer = SUBLAYERS[space]
    counted = [geometry.family.reader(sublayer)] + [linear for linear in geometry.family.writers(sublayer) if score == "product"]
    expected = torch.ones(geometry.blocks[block].units(sublayer))
    for linear in counted:
        expected *= torch.stack([part.norm() for part in parts_of_units(weight(linear.name), linear, geometry, block)])
    view = BlockView(BlockStatistics(), weight, geometry, block)
    found = Magnitude().score(view, space, resolve_step(structured("magnitude", space, options={"score": score})))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize("method", ["magnitude", "wanda_sp", "gblm"])
def test_structured_baselines_pass_the_gate(tmp_path: Path, family: str, method: str) -> None:
    source = tiny_model(family, tmp_path / "dense")
    step = structured(method, Space.FFN, budget={"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}})
    model = ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))
    plan = make_plan(model, WINDOWS, PruneSlice(steps=(step,)), Events())
    out = rebuilt(tmp_path, source, plan, Profile.FREE)
    assert json.loads((out / "gate.json").read_text())["passed"]
    dense = Checkpoint(source).geometry.blocks[0]
    assert {(block.ffn, block.kv_groups) for block in Checkpoint(out).geometry.blocks} == {(dense.ffn // 2, dense.kv_groups // 2)}


def test_wanda_sp_measures_behind_pruned_blocks(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path)
    kept = {}
    for sequential in (None, True, False):
        model = ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))
        step = structured("wanda_sp", Space.FFN, sequential=sequential)
        kept[sequential] = make_plan(model, WINDOWS, PruneSlice(steps=(step,)), Events()).selection.ffn
    assert kept[None] == kept[True]
    assert kept[None][0] == kept[False][0]
    assert kept[None][1:] != kept[False][1:]
