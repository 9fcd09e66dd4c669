"""Taylor importance: against weights times their gradients by autograd, sequence by sequence, and against a unit that is scaled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.prune.methods.method import BlockView
from pipeline.prune.methods.taylor import Taylor, taylor_importance
from pipeline.prune.recipe import PruneStep
from pipeline.prune.step import ResolvedStep
from pipeline.prune.steps import resolve_step
from tests.pipeline.units import parts_of_units
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (3, 24), generator=torch.Generator().manual_seed(7))
BLOCK = 1


def step(*spaces: Space) -> ResolvedStep:
    return resolve_step(PruneStep.model_validate({"method": "taylor", "budget": {space: {"remove": 0.5} for space in spaces}}))


def products(folder: Path, name: str) -> torch.Tensor:
    """Weight times the gradient of each window's own mean cross-entropy, by autograd through the whole model; shape (N, R, C)."""
    model = load_model(folder, dtype=torch.float32)
    weight = model.get_parameter(Checkpoint(folder).geometry.family.module(BLOCK, name) + ".weight").requires_grad_()
    losses = [model(window[None], labels=window[None], use_cache=False).loss for window in WINDOWS]
    return torch.stack([weight.detach() * torch.autograd.grad(loss, weight)[0] for loss in losses])


def scores(folder: Path, *spaces: Space) -> list[torch.Tensor]:
    """What the method gives one block, per space, from what it asks for."""
    model, geometry = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry
    needs = Taylor().needs(step(*spaces))
    assert needs.gradients is not None
    assert not needs.forward
    swept = dict(gradient_sweep(model, geometry.family, WINDOWS, needs.gradients, Events()))
    seen = BlockStatistics(WINDOWS.numel(), len(WINDOWS), gradients=swept[BLOCK])
    view = BlockView(seen, lambda name: pytest.fail("no weight is needed"), geometry, BLOCK)
    return [Taylor().score(view, space, step(*spaces)) for space in spaces]


def test_signs_count_within_a_unit_and_not_over_sequences() -> None:
    slopes = torch.tensor([[1.0, -2.0, 5.0, 0.0], [3.0, 1.0, -5.0, 0.0]])
    torch.testing.assert_close(taylor_importance(slopes, 1), torch.tensor([2.0, 1.5, 5.0, 0.0]))
    torch.testing.assert_close(taylor_importance(slopes, 2), torch.tensor([(1.0 + 4.0) / 2, 5.0]))


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize("space", SUBLAYERS)
def test_weight_times_gradient_summed_over_the_units_columns(tmp_path: Path, family: str, space: Space) -> None:
    folder = tiny_model(family, tmp_path)
    geometry = Checkpoint(folder).geometry
    reader = geometry.family.reader(SUBLAYERS[space])
    per_sequence = [
        torch.stack([part.sum() for part in parts_of_units(values, reader, geometry, BLOCK)]) for values in products(folder, reader.name)
    ]
    (found,) = scores(folder, space)
    torch.testing.assert_close(found, torch.stack(per_sequence).abs().mean(dim=0), rtol=1e-4, atol=1e-7)
    assert found.count_nonzero() > len(found) / 2  # OPT has channels that no token switches on


def test_the_rows_that_write_a_channel_behind_a_product_give_the_same(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    (found,) = scores(folder, Space.FFN)
    torch.testing.assert_close(found, products(folder, "mlp.up_proj").sum(dim=2).abs().mean(dim=0), rtol=1e-4, atol=1e-7)
    bent = products(folder, "mlp.gate_proj").sum(dim=2).abs().mean(dim=0)
    assert not torch.allclose(found, bent, rtol=0.1)


def test_it_is_the_slope_of_the_loss_where_a_channel_is_scaled(tmp_path: Path) -> None:
    folder, scale = tiny_model("llama", tmp_path), 0.05
    model, geometry = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry
    weight = model.get_parameter(geometry.family.module(BLOCK, geometry.family.reader(Sublayer.FFN).name) + ".weight").detach()
    (found,) = scores(folder, Space.FFN)
    for channel in (0, 17, 40):
        column, losses = weight[:, channel].clone(), []
        for factor in (1 + scale, 1 - scale):
            weight[:, channel] = column * factor
            with torch.no_grad():
                losses.append([model(window[None], labels=window[None], use_cache=False).loss for window in WINDOWS])
        weight[:, channel] = column
        slopes = (torch.tensor(losses[0]) - torch.tensor(losses[1])) / (2 * scale)
        torch.testing.assert_close(found[channel], slopes.abs().mean(), rtol=1e-2, atol=0)


def test_both_spaces_are_scored_from_one_sweep(tmp_path: Path) -> None:
    folder = tiny_model("qwen2", tmp_path)
    for together, space in zip(scores(folder, Space.FFN, Space.KV_GROUP), (Space.FFN, Space.KV_GROUP), strict=True):
        (alone,) = scores(folder, space)
        assert torch.equal(together, alone)
