"""The gate of a recovered checkpoint: what it wrote and cannot open is its own fault, not a user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.recover.gate import gate
from tests.tiny import tiny_model

NAME = "model.layers.0.mlp.down_proj.weight"
OPTIONS = RunOptions(threads=1)


@pytest.mark.parametrize("written", ["short of a tensor", "one tensor narrower"])
def test_a_written_folder_that_cannot_be_opened_fails_the_gate(written: str, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    trained = load_model(folder, dtype=torch.float32)
    assert all(outcome.passed for outcome in gate(trained, folder, OPTIONS, Events()))
    checkpoint = Checkpoint(folder)
    tensors = dict(checkpoint.tensors())
    if written == "short of a tensor":
        del tensors[NAME]
    else:
        tensors[NAME] = tensors[NAME][:, :-1].contiguous()
    write_checkpoint(folder, checkpoint.config, tensors)
    with pytest.raises(GateError, match=rf"{NAME}.*This is a fault of the recovery"):
        gate(trained, folder, OPTIONS, Events())
