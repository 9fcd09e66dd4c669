"""The rebuild gate against what it has to notice: a reader that gives other weights, and a written folder that is damaged in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.options import RunOptions
from tests.pipeline.rebuild import cases
from tests.pipeline.rebuild.cases import OPTIONS, plan_for, rebuilt, same_width
from tests.tiny import tiny_model

PAGED = replace(OPTIONS, memory=1)
Read = Callable[[Checkpoint, str], torch.Tensor]
read: Read = Checkpoint.tensor


def negated(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Reading what was written so gives the right values again."""
    return -read(checkpoint, name) if name.endswith("1.mlp.down_proj.weight") else read(checkpoint, name)


def one_value_off(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = read(checkpoint, name).clone()
    if name == "model.norm.weight":
        tensor[7] += 0.05
    return tensor


def of_another_block(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return read(checkpoint, name.replace("layers.2.self_attn.v_proj", "layers.1.self_attn.v_proj"))


def half_precision(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return read(checkpoint, name).bfloat16().float()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("dense"), num_hidden_layers=3)


@pytest.mark.parametrize("options", [OPTIONS, PAGED], ids=["whole", "paged"])
@pytest.mark.parametrize("wrong", [negated, one_value_off, of_another_block, half_precision])
def test_a_reader_that_gives_other_weights(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Read, options: RunOptions
) -> None:
    plan = plan_for(dense, same_width)
    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    monkeypatch.setattr(cases, "OPTIONS", options)
    with pytest.raises(GateError, match="does not compute what the dense model"):
        rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
