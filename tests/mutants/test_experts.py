"""The rebuild gate against what can go wrong where whole experts go: a folder that is damaged in one place, and writers that err."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.architecture.profile import Profile
from pipeline.checkpoints import stacked
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.plan.plan import Plan
from pipeline.rebuild import gate as gate_module
from pipeline.rebuild.gate import gate_again
from tests.mutants.test_rebuild import edit
from tests.pipeline.rebuild.cases import OPTIONS, fewer_experts, plan_for, rebuilt
from tests.tiny import tiny_model

State = dict[str, torch.Tensor]
TYPES = ("minimax_m2", "qwen2_moe", "qwen3_moe")
BLOCK = "model.layers.1"


class Written:
    """Dense models of two blocks and what is left of them without two experts in each, by type."""

    def __init__(self, folder: Path) -> None:
        self.dense = {name: tiny_model(name, folder / name / "dense", num_hidden_layers=2) for name in TYPES}
        self.plans: Mapping[str, Plan] = {name: plan_for(self.dense[name], fewer_experts) for name in TYPES}
        self.outs = {name: rebuilt(folder / name, self.dense[name], self.plans[name], Profile.UNIFORM) for name in TYPES}

    def damaged(self, name: str, tmp: Path, damage: Callable[[State], State]) -> Path:
        folder: Path = shutil.copytree(self.outs[name], tmp / "damaged")
        state = load_file(folder / "model.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in damage(state).items()}, folder / "model.safetensors", {"format": "pt"})
        return folder

    def gate(self, name: str, folder: Path) -> None:
        gate_again(Checkpoint(self.dense[name]), self.plans[name], folder, OPTIONS, Events())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("written"))


def a_row_of_another_expert(state: State) -> State:
    name = f"{BLOCK}.mlp.gate.weight"
    return state | {name: state[name][[1, 0, 2, 3, 4, 5]]}


def experts_in_another_order(state: State) -> State:
    """The router is as it should be."""
    swapped = dict(state)
    for part in ("gate_proj", "up_proj", "down_proj"):
        zero, one = (f"{BLOCK}.mlp.experts.{expert}.{part}.weight" for expert in (0, 1))
        swapped |= {zero: state[one].clone(), one: state[zero].clone()}
    return swapped


def gate_and_up_swapped(state: State) -> State:
    gate, up = (f"{BLOCK}.mlp.experts.3.{part}_proj.weight" for part in ("gate", "up"))
    return state | {gate: state[up].clone(), up: state[gate].clone()}


def a_shared_expert_cut(state: State) -> State:
    name = f"{BLOCK}.mlp.shared_expert.down_proj.weight"
    cut = state[name].clone()
    cut[:, :24] = 0
    return state | {name: cut}


def the_bias_of_the_first_six(state: State) -> State:
    """As if the correction had not been cut by number."""
    name = f"{BLOCK}.block_sparse_moe.e_score_correction_bias"
    return state | {name: DENSE_BIAS[name][:6]}


def no_bias(state: State) -> State:
    name = f"{BLOCK}.block_sparse_moe.e_score_correction_bias"
    return state | {name: torch.zeros_like(state[name])}


DENSE_BIAS: State = {}
DAMAGES = [
    ("qwen3_moe", a_row_of_another_expert),
    ("qwen3_moe", experts_in_another_order),
    ("qwen3_moe", gate_and_up_swapped),
    ("qwen2_moe", a_shared_expert_cut),
    ("minimax_m2", the_bias_of_the_first_six),
    ("minimax_m2", no_bias),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_computed(written: Written, tmp_path: Path, name: str, damage: Callable[[State], State]) -> None:
    DENSE_BIAS.update(load_file(written.dense["minimax_m2"] / "model.safetensors"))
    written.gate(name, written.damaged(name, tmp_path / "sound", dict))
    with pytest.raises(GateError, match="does not compute"):
        written.gate(name, written.damaged(name, tmp_path, damage))


def test_weights_of_the_chosen_normalised_the_other_way(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written.damaged("qwen3_moe", tmp_path, dict)
    edit(folder / "config.json", norm_topk_prob=False)
    with pytest.raises(GateError, match="norm_topk_prob is False"):
        written.gate("qwen3_moe", folder)
    monkeypatch.setattr(gate_module, "demand_settings", lambda *_: {})  # the logits alone show it too
    with pytest.raises(GateError, match="does not compute"):
        written.gate("qwen3_moe", folder)


def test_one_expert_fewer_for_every_token(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written.damaged("qwen3_moe", tmp_path, dict)
    edit(folder / "config.json", num_experts_per_tok=1)
    with pytest.raises(GateError, match="num_experts_per_tok is 1"):
        written.gate("qwen3_moe", folder)
    monkeypatch.setattr(gate_module, "demand_settings", lambda *_: {})
    with pytest.raises(GateError, match="does not compute"):
        written.gate("qwen3_moe", folder)


def test_a_writer_that_numbers_experts_from_the_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=2)
    plan, right = plan_for(dense, fewer_experts), stacked.InFiles.__getitem__

    def wrong(self: stacked.InFiles, name: str) -> torch.Tensor:
        return right(self, name.replace("experts.0.", "experts.9.").replace("experts.5.", "experts.0.").replace("experts.9.", "experts.5."))

    monkeypatch.setattr(stacked.InFiles, "__getitem__", wrong)
    with pytest.raises(GateError, match="does not compute"):
        rebuilt(tmp_path, dense, plan, Profile.UNIFORM)


def test_a_reader_that_takes_up_for_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written so is read so again by the same code; transformers' loader reads it otherwise."""
    dense = tiny_model("mixtral", tmp_path / "dense", num_hidden_layers=2)
    plan, right = plan_for(dense, fewer_experts), Checkpoint.tensor

    def wrong(self: Checkpoint, name: str) -> torch.Tensor:
        found = right(self, name)
        return torch.cat(found.chunk(2, dim=1)[::-1], dim=1) if name.endswith("gate_up_proj") else found

    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    with pytest.raises(GateError, match="does not compute"):
        rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
