"""The registry of deploy targets, their folders in a package, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from deploy.package import package
from deploy.recipe import PackageSlice, TargetName
from deploy.targets import TARGETS, ModelToServe, Obstacle, check_targets, wanted_targets, with_targets
from deploy.verify import verify
from exporters.openvino.runtime import has
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.tiny import tiny_model

# Those that can be written with what is installed: all but openvino's need only what Trimline needs.
WRITABLE = [name for name in TARGETS if name != "openvino" or all(map(has, ("openvino", "openvino_tokenizers")))]


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> ModelToServe:
    folder = tiny_model("llama", tmp_path_factory.mktemp("dense"))
    return ModelToServe.of(Checkpoint(folder), Profile.UNIFORM)


def written(folder: Path, parts, **settings) -> Path:
    folder.mkdir()
    package(parts, PackageSlice(**settings), folder, Events())
    return folder


def test_the_recipe_knows_every_target_by_its_name():
    assert set(get_args(TargetName)) == set(TARGETS)
    assert {target.name for target in TARGETS.values()} == set(TARGETS)
    assert {name for target in TARGETS.values() for name in target.brings} <= set(TARGETS)


@pytest.mark.parametrize("name", WRITABLE)
def test_a_package_with_a_target(parts, tmp_path, name):
    shipped = written(tmp_path / "package", parts, targets=(name,))
    folder = shipped / "serve" / name
    listed = json.loads((shipped / "manifest.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert {path.relative_to(shipped).as_posix() for path in files} <= set(listed["files"])
    assert name in listed["targets"]
    assert verify(shipped) == []
    assert f"| {name} | `serve/{name}/` | `{TARGETS[name].start}` |" in (shipped / "README.md").read_text()
    assert "README.md" in {path.name for path in files}
    for path in files:
        if path.suffix in {".md", ".yaml", ".pbtxt", ".py", ".sh", ""}:
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), f"{path.name} names a place on this machine"


@pytest.mark.parametrize("name", WRITABLE)
def test_the_same_package_gives_the_same_bytes(parts, tmp_path, name):
    folders = [written(tmp_path / place, parts, targets=(name,)) / "serve" for place in ("one", "two")]
    files = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert files[0] == files[1]


def test_without_targets_there_is_no_folder(parts, tmp_path):
    shipped = written(tmp_path / "package", parts)
    assert not (shipped / "serve").exists()
    assert "## Serve it" not in (shipped / "README.md").read_text()
    assert json.loads((shipped / "manifest.json").read_text())["targets"] == []


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if "onnx" in target.needs])
def test_a_target_for_onnx_without_onnx_is_refused(candidate, name):
    with pytest.raises(TrimlineError, match=r"package\.onnx is false"):
        check_targets(PackageSlice(onnx=False, targets=(name,)), candidate)


@pytest.mark.skipif("openvino" in WRITABLE, reason="trimline[openvino] is installed")
def test_what_a_target_is_written_with_has_to_be_installed(candidate):
    with pytest.raises(TrimlineError, match=r"openvino, which writes its folder, is not installed"):
        check_targets(PackageSlice(targets=("openvino",)), candidate)


def test_a_part_that_is_missing(parts, tmp_path):
    with pytest.raises(TrimlineError, match="which this package lacks"):
        written(tmp_path / "package", dataclasses.replace(parts, onnx=None), targets=("onnxruntime-genai",))


def test_an_obstacle_becomes_a_sentence(candidate, monkeypatch):
    class Refusing:
        name, needs, brings, start = "onnxruntime-genai", frozenset(), (), ""

        def obstacle(self, candidate):
            return Obstacle("it is a test", "use another")

    monkeypatch.setitem(TARGETS, "onnxruntime-genai", Refusing())
    with pytest.raises(TrimlineError, match=r"^The target onnxruntime-genai cannot serve this model: it is a test\. Use another\.$"):
        check_targets(PackageSlice(targets=("onnxruntime-genai",)), candidate)


def test_names_are_added_once_and_wrong_ones_refused():
    once = with_targets(PackageSlice(targets=("onnxruntime-genai",)), ["onnxruntime-genai"])
    assert once.targets == ("onnxruntime-genai",)
    assert [target.name for target in wanted_targets(once)] == ["onnxruntime-genai"]
    with pytest.raises(TrimlineError, match="no target 'onnxruntime-gen'. Did you mean 'onnxruntime-genai'"):
        with_targets(PackageSlice(), ["onnxruntime-gen"])


@pytest.mark.parametrize("name", ["", "a/b", "Über", "a b", "-a", "a\n", "x" * 41])
def test_names_that_no_server_takes_are_refused(name):
    with pytest.raises(ValueError, match="served_name"):
        PackageSlice(served_name=name)


def test_compose_files_mount_the_package_read_only(parts, tmp_path):
    shipped = written(tmp_path / "package", parts, targets=tuple(WRITABLE))
    composed = sorted(shipped.glob("serve/*/compose.yaml"))
    assert composed
    for path in composed:
        for service in yaml.safe_load(path.read_text())["services"].values():
            for volume in service["volumes"]:
                source, _, mode = volume.split(":")
                assert (path.parent / source).resolve().is_relative_to(shipped.resolve())
                assert mode == "ro"
