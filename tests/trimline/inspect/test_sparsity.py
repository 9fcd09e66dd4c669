"""``trimline inspect --sparsity`` on checkpoints and ONNX folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from tests.end_to_end.scenario import trimline
from tests.tiny import tiny_model
from tests.trimline.inspect.test_inspect import write_graph
from trimline.inspect import inspect_sparsity


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense") / "model", num_hidden_layers=1)


def test_a_checkpoint(dense, tmp_path):
    checkpoint, name = Checkpoint(dense), "model.layers.0.mlp.down_proj.weight"
    tensors = dict(checkpoint.tensors())
    tensors[name] = tensors[name] * torch.tensor([1, 0, 0, 1] * 24)
    write_checkpoint(tmp_path, checkpoint.config, tensors)
    found = {weight.name: weight for weight in inspect_sparsity(tmp_path)}
    assert len(found) == 7
    assert [weight.name for weight in found.values() if weight.complies] == [name]
    assert (found[name].zeros, found[name].axis, found[name].operator) == (0.5, 1, "Linear")


def test_an_onnx_folder_on_the_command_line(tmp_path):
    good = np.ones((8, 4), np.float32)
    good[::2] = 0
    write_graph(tmp_path, good, np.ones((6, 4), np.float32), external=True)
    called = trimline("inspect", tmp_path, "--sparsity", "--json")
    assert called.code == 0
    rows = {row["name"]: row for row in called.answer["weights"]}
    assert {name: (row["complies"], row["axis"]) for name, row in rows.items()} == {"w": (True, 0), "g": (False, 1)}
    assert "1 of 2 weights are 2:4" in called.stderr


def test_a_folder_that_holds_no_weights(tmp_path):
    with pytest.raises(TrimlineError, match="holds neither"):
        inspect_sparsity(tmp_path)
