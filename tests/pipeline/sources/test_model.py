"""Models by name: folder, hub id, GGUF; what their keys depend on, and that a folder is looked at but not copied."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.sources.model import check_checkpoint, checkpoint_folder, describe, identify, source
from pipeline.sources.recipe import ModelSlice
from tests.tiny import TINY_FAMILIES, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("model") / "tiny")


def test_a_folder_is_pointed_at_not_copied(model, tmp_path):
    source(ModelSlice(source=str(model)), RunOptions(), tmp_path, Events())
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]
    assert checkpoint_folder(tmp_path) == model
    assert checkpoint_folder(model) == model
    assert describe(ModelSlice(source=str(model))) == "tiny"


def test_the_key_of_a_folder_follows_its_bytes(model, tmp_path):
    before = identify(ModelSlice(source=str(model)))
    assert identify(ModelSlice(source=str(model))) == before
    copy = shutil.copytree(model, tmp_path / "tiny")
    assert identify(ModelSlice(source=str(copy)))["sha256"] == before["sha256"]
    (copy / "notes.txt").write_text("one more file")
    assert identify(ModelSlice(source=str(copy)))["sha256"] != before["sha256"]


def test_a_hub_id_is_known_by_name_and_revision():
    first = identify(ModelSlice(source="org/name"))
    assert first == {"kind": "hub", "id": "org/name", "revision": "main"}
    assert identify(ModelSlice(source="org/name", revision="v2")) != first


def test_a_hub_model_is_checked_and_leaves_no_traces(model, tmp_path, monkeypatch):
    import huggingface_hub

    def download(name, *, revision, local_dir, ignore_patterns):
        fetched = set(huggingface_hub.utils.filter_repo_objects([file.rfilename for file in on_the_hub], ignore_patterns=ignore_patterns))
        assert fetched == {"config.json", "tekken.json", "model-00001-of-00001.safetensors", "additional_chat_templates/tools.jinja"}
        shutil.copytree(model, local_dir)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    on_the_hub = [
        SimpleNamespace(rfilename=name, size=size)
        for name, size in {
            "config.json": 10, "tekken.json": 10**7, "model-00001-of-00001.safetensors": 10**10, "additional_chat_templates/tools.jinja": 9,
            "pytorch_model.bin": 10**10, "onnx/model.onnx": 10**9, "modeling_x.py": 10, "original/consolidated.00.pth": 9, "demo [1].mp4": 10**9,
            ".gitattributes": 9,
        }.items()
    ]  # fmt: skip
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=on_the_hub))
    source(ModelSlice(source="org/name"), RunOptions(), tmp_path, Events())
    assert read_json(tmp_path / "source.json") == {"name": "org/name", "folder": "checkpoint"}
    assert not (tmp_path / "checkpoint" / ".cache").exists()
    assert Checkpoint(checkpoint_folder(tmp_path)).geometry == Checkpoint(model).geometry


@pytest.mark.parametrize("name", ["org/name.gguf", "a/b/c", "name", "../x", "org/", "/x", "-x/y", "org/na me", ""])
def test_names_that_name_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(TrimlineError, match="There is no model"):
            identify(ModelSlice(source=name))
    else:  # the folder one stands in, which holds no model
        with pytest.raises(TrimlineError, match=r"config\.json"):
            source(ModelSlice(source=name), RunOptions(), tmp_path, Events())


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_whole_checkpoints_of_every_family_pass(family, tmp_path):
    check_checkpoint(Checkpoint(tiny_model(family, tmp_path)))
