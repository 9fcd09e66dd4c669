"""Checkpoint folders: written whole and the same, read tensor by tensor, shards and their index."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import pipeline.checkpoints.checkpoint
from pipeline.artefacts.artefact import folder_digest
from pipeline.checkpoints.checkpoint import INDEX, Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.tensors.tensorfile import save_tensors
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return Checkpoint(tiny_model("llama", tmp_path_factory.mktemp("dense")))


def test_shards_hold_what_one_file_holds(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.checkpoints.checkpoint, "SHARD_BYTES", 100_000)
    tensors = dict(dense.tensors())
    write_checkpoint(tmp_path, dense.config, tensors)
    again = Checkpoint(tmp_path)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.tensors())
    assert set(again.locations) == set(tensors)
    index = read_json(tmp_path / INDEX)
    assert index["weight_map"] == again.locations
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_the_same_tensors_are_the_same_bytes(dense, tmp_path):
    tensors = dict(dense.tensors())
    for name, order in (("a", tensors), ("b", dict(reversed(tensors.items())))):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, dense.config, order)
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_files_may_be_read_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2, 3).T})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_shard_that_the_index_leaves_out_is_not_read(dense, tmp_path):
    write_json(tmp_path / "config.json", dense.config)
    save_file(dict(dense.tensors()), tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    write_json(tmp_path / INDEX, {"weight_map": {"model.norm.weight": "one.safetensors"}})
    assert set(Checkpoint(tmp_path).locations.values()) == {"one.safetensors"}


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (float("-inf"), "Inf")])
def test_check_finite_names_the_tensor(dense, tmp_path, value, kind):
    tensors = dict(dense.tensors())
    tensors["model.norm.weight"][1] = value
    write_checkpoint(tmp_path, dense.config, tensors)
    with pytest.raises(TrimlineError, match=rf"model\.norm\.weight .* {kind}"):
        Checkpoint(tmp_path).check_finite()


def test_a_tensor_that_is_not_there(dense):
    with pytest.raises(TrimlineError, match=r"holds no tensor nothing\.weight"):
        dense.tensor("nothing.weight")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("none.json", None, "does not exist"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "list, not an object"),
        ("a.json", "9" * 5000, "not valid JSON"),
    ],
)
def test_json_that_is_no_object(tmp_path, name, text, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TrimlineError, match=match):
        read_json(tmp_path / name)


def test_json_keeps_its_order_and_its_letters(tmp_path):
    write_json(tmp_path / "a.json", {"ü": 1, "a": [1.5, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ü": 1,\n  "a": [\n    1.5,\n    null\n  ]\n}\n'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 1, "a": [1.5, None]}
