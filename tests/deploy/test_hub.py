"""The hub's folder: transformers opens it as it is, after tar, and as a hub's cache lays it out."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deploy.package import PackageParts, package
from deploy.recipe import PackageSlice
from deploy.verify import verify
from pipeline.common.events import Events


@pytest.fixture(scope="module")
def shipped(parts: PackageParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with the target ``hub``."""
    folder = tmp_path_factory.mktemp("shipped") / "package"
    folder.mkdir()
    package(parts, PackageSlice(targets=("hub",), licence="apache-2.0"), folder, Events())
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.arange(12)[None]).logits


def through_tar(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "hub.tgz", "w:gz") as archive:
        archive.add(folder, "hub")
    with tarfile.open(out / "hub.tgz") as archive:
        archive.extractall(out / "unpacked", filter="data")
    return out / "unpacked" / "hub"


def as_cache(folder: Path, out: Path) -> Path:
    """Every file is a link into ``blobs``, two folders up."""
    snapshot, blobs = out / "models--me--small" / "snapshots" / "abc", out / "models--me--small" / "blobs"
    blobs.mkdir(parents=True)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("way", [lambda folder, _: folder, through_tar, as_cache], ids=["as it is", "tar", "cache"])
def test_transformers_opens_it(shipped, tmp_path, way):
    assert torch.equal(logits(way(shipped / "serve" / "hub", tmp_path)), logits(shipped / "model"))


def test_what_lies_where(shipped):
    hub = shipped / "serve" / "hub"
    assert {path.name for path in (shipped / "model").iterdir()} <= {path.name for path in hub.iterdir()}
    assert (hub / "onnx" / "model.onnx").is_file()
    assert verify(shipped) == []


def test_the_card_speaks_of_this_folder(shipped):
    card, whole = ((folder / "README.md").read_text() for folder in (shipped / "serve" / "hub", shipped))
    assert card.startswith("---\nlibrary_name: transformers")
    assert 'from_pretrained(".", trust_remote_code=True)' in card
    for named in ("model/", "manifest.json", "run.json", "sbom", "## Serve it", "of the package alone"):
        assert named not in card, named
    for named in ('from_pretrained("model"', "run.json", "manifest.json"):
        assert named in whole, named
    for line in card.splitlines():
        for name in ("recipe.yaml", "plan.json", "report.html", "LICENSE"):
            if f"`{name}`" in line:
                assert (shipped / "serve" / "hub" / name).is_file(), line
