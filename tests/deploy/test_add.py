"""More servers for a package that is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from deploy.add import add_targets, is_package
from deploy.package import package, sums
from deploy.recipe import PackageSlice
from deploy.verify import verify
from pipeline.artefacts.sums import write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.deploy.parts import OPTIONS


def made(parts, folder: Path, *targets: str) -> Path:
    folder.mkdir()
    package(parts, PackageSlice(targets=targets, licence="mit"), folder, Events())
    # The parts' recipe names no package; a run writes what the slice says.
    document = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"package": {"licence": "mit"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": sums(folder, Events())}))
    write_sums(folder)
    return folder


def added(source: Path, out: Path, *targets: str) -> Path:
    out.mkdir()
    add_targets(source, targets, OPTIONS, out, Events())
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_gets_one_more_server_and_the_old_one_stays(parts, tmp_path):
    old = made(parts, tmp_path / "old", "onnxruntime-genai")
    before = contents(old)
    new = added(old, tmp_path / "new", "triton")
    assert contents(old) == before
    assert verify(new) == []
    assert json.loads((new / "manifest.json").read_text())["targets"] == ["onnxruntime-genai", "triton"]
    assert yaml.safe_load((new / "recipe.yaml").read_text())["package"] == {"licence": "mit", "targets": ["onnxruntime-genai", "triton"]}
    assert (new / "model" / "model.safetensors").samefile(old / "model" / "model.safetensors")
    changed = {name for name, content in contents(new).items() if before.get(name) != content}
    assert {name for name in changed if not name.startswith("serve/triton/")} == {"README.md", "manifest.json", "recipe.yaml", "SHA256SUMS"}


def test_it_is_what_packaging_with_both_gives(parts, tmp_path):
    one_by_one = added(added(made(parts, tmp_path / "none"), tmp_path / "one", "triton"), tmp_path / "two", "onnxruntime-genai")
    together = made(parts, tmp_path / "both", "onnxruntime-genai", "triton")
    assert {name: content for name, content in contents(one_by_one).items() if name.startswith("serve/") or name == "README.md"} == {
        name: content for name, content in contents(together).items() if name.startswith("serve/") or name == "README.md"
    }


def test_a_package_that_was_changed_is_refused(parts, tmp_path):
    old = made(parts, tmp_path / "old")
    damaged = Path(shutil.copytree(old, tmp_path / "damaged"))
    (damaged / "plan.json").write_text("{}")
    with pytest.raises(TrimlineError, match=r"is not as its manifest says: plan\.json: 2 bytes"):
        added(damaged, tmp_path / "new", "triton")


def test_nothing_to_add_is_refused(parts, tmp_path):
    old = made(parts, tmp_path / "old")
    assert is_package(old)
    assert not is_package(old / "recipe.yaml")
    with pytest.raises(TrimlineError, match="is a package already"):
        added(old, tmp_path / "new")


def test_a_recipe_with_a_wrong_package_part_is_refused(parts, tmp_path):
    old = made(parts, tmp_path / "old")
    (old / "recipe.yaml").write_text("package: {served_name: Über uns}\n")
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"files": sums(old, Events())}))
    write_sums(old)
    with pytest.raises(TrimlineError, match=r"wrong value at package\.served_name"):
        added(old, tmp_path / "new", "triton")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("recipe.yaml", b"- a\n", r"recipe\.yaml holds no recipe"),
        ("recipe.yaml", b"\xff\xfe", r"recipe\.yaml cannot be read"),
        ("recipe.yaml", b"a: &a [1]\nb: *a\n", r"recipe\.yaml uses YAML aliases"),
        ("README.md", b"\xff\xfe", r"README\.md cannot be read"),
    ],
)
def test_files_that_somebody_replaced_with_their_sums(parts, tmp_path, name, content, match):
    old = made(parts, tmp_path / "old")
    (old / name).write_bytes(content)
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"files": sums(old, Events())}))
    write_sums(old)
    with pytest.raises(TrimlineError, match=match):
        added(old, tmp_path / "new", "onnxruntime-genai")


@pytest.mark.parametrize("targets", [5, "triton", [1], {"a": 1}])
def test_a_manifest_whose_targets_are_no_list(parts, tmp_path, targets):
    old = made(parts, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"targets": targets}))
    write_sums(old)
    with pytest.raises(TrimlineError, match="list of targets that is none"):
        added(old, tmp_path / "new", "onnxruntime-genai")
