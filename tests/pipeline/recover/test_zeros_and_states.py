"""Zeros that stay zero; states that count only when they are whole."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.recover.resuming import SEAL, Sealer, last_whole, seal
from pipeline.recover.zeros import ZeroKeeper, demand_zeros, projection_weights
from pipeline.tensors.tensorfile import save_tensors
from tests.tiny import tiny_model

NAME = "model.layers.1.mlp.up_proj.weight"


@given(st.floats(0, 1), st.integers(0, 100))
def test_the_keeper_undoes_whatever_moves_a_zero(share, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(6, 8, generator=generator))
    with torch.no_grad():
        weight[torch.rand(6, 8, generator=generator) < share] = 0
    zeros, keeper = weight.detach() == 0, ZeroKeeper({"w": weight})
    with torch.no_grad():
        weight.add_(1)
    moved = weight.detach().clone()
    keeper.on_optimizer_step()
    assert (weight[zeros] == 0).all()
    assert torch.equal(weight[~zeros], moved[~zeros])


def masked(folder, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    kept = dict(Checkpoint(folder).tensors())
    (folder / "model.safetensors").unlink()
    save_tensors(folder / "model.safetensors", kept | tensors)
    return Checkpoint(folder)


def two_four(weight: torch.Tensor) -> torch.Tensor:
    """Every second pair of inputs gone."""
    kept = weight.clone()
    kept.unflatten(1, (-1, 4))[:, :, [1, 2]] = 0
    return kept


@pytest.fixture
def pair(tmp_path):
    """Two equal folders, one weight 2:4."""
    before = tiny_model("llama", tmp_path / "before")
    masked(before, {NAME: two_four(Checkpoint(before).tensor(NAME))})
    shutil.copytree(before, tmp_path / "after")
    return before, tmp_path / "after"


def test_kept_zeros_are_counted(pair):
    before, after = map(Checkpoint, pair)
    moved = {name: torch.where(before.tensor(name) == 0, 0, before.tensor(name) + 1) for name in projection_weights(before.geometry)}
    zeros = int((before.tensor(NAME) == 0).sum())
    assert demand_zeros(before, masked(after.folder, moved)) == {"tensors": 1, "zeros": zeros, "two_four": 1}
    assert zeros == 96 * 64 // 2


@pytest.mark.parametrize("value", [1e-30, -2.0, float("nan")])
def test_one_lost_zero_is_named(pair, value):
    before, after = map(Checkpoint, pair)
    weight = after.tensor(NAME)
    weight.view(-1)[int((weight.flatten() == 0).nonzero()[5])] = value
    with pytest.raises(GateError, match=rf"lost 1 of 3072 weights of {NAME}"):
        demand_zeros(before, masked(after.folder, {NAME: weight}))


# --- states --------------------------------------------------------------------------------------------------------


def state(work, step: int, sealed: bool = True):
    folder = work / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(range(step % 200)))
    (folder / "sub" / "rng.pth").write_bytes(b"rng")
    if sealed:
        seal(folder)
    return folder


def test_the_latest_whole_state_counts(tmp_path):
    assert last_whole(tmp_path) is None
    assert last_whole(tmp_path / "none") is None
    states = [state(tmp_path, step) for step in (9, 10, 100)]
    (tmp_path / "checkpoint-abc").mkdir()
    assert last_whole(tmp_path) == states[2]
    (states[2] / SEAL).unlink()
    assert last_whole(tmp_path) == states[1]
    (states[1] / "optimizer.pt").write_bytes(b"cut")
    assert last_whole(tmp_path) == states[0]
    (states[0] / "sub" / "rng.pth").unlink()
    assert last_whole(tmp_path) is None


def test_a_damaged_seal_does_not_count(tmp_path):
    folder = state(tmp_path, 3)
    (folder / SEAL).write_text('{"optimizer.pt": ')
    assert last_whole(tmp_path) is None


def test_only_the_first_process_seals(tmp_path):
    folder = state(tmp_path, 7, sealed=False)
    for first in (False, True):
        at = SimpleNamespace(is_world_process_zero=first, global_step=7)
        Sealer().on_save(SimpleNamespace(output_dir=str(tmp_path)), at)
        assert (folder / SEAL).exists() == first
    assert last_whole(tmp_path) == folder
