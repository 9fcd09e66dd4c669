"""The folder to ship: a copy of its own, whole or not there, never over what somebody changed."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from deploy.folder import MANIFEST
from deploy.shipping import ship
from deploy.verify import verify
from pipeline.artefacts.sums import file_digest, write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.files import write_json


def package(folder: Path, text: str) -> Path:
    """A folder with a manifest that its one file fits."""
    (folder / "model").mkdir(parents=True)
    weights = folder / "model" / "model.safetensors"
    weights.write_text(text)
    entry = {"sha256": file_digest(weights), "bytes": weights.stat().st_size, "measured": False}
    write_json(folder / MANIFEST, {"format": 1, "files": {"model/model.safetensors": entry}})
    write_sums(folder)
    return folder


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A package in a store, the place beside the store, the store."""
    store = tmp_path / "out" / "store"
    return package(store / "package-1" / "package", "one"), tmp_path / "out" / "package", store


def test_it_is_a_folder_that_goes_through_tar(places, tmp_path):
    made, beside, store = places
    ship(*places)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(beside, "package")
    with tarfile.open(tmp_path / "package.tgz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    shutil.rmtree(store)
    assert verify(tmp_path / "elsewhere" / "package") == []


def test_who_edits_it_does_not_edit_the_store(places):
    made, beside, _ = places
    ship(*places)
    for path in (path for path in made.rglob("*") if path.is_file()):
        assert not path.samefile(beside / path.relative_to(made))
    (beside / "model" / "model.safetensors").write_text("two")
    assert verify(made) == []


def test_the_same_package_stays_and_another_replaces_it(places):
    made, beside, store = places
    ship(*places)
    before = (beside / MANIFEST).stat().st_ino
    ship(*places)
    assert (beside / MANIFEST).stat().st_ino == before
    ship(package(store / "package-2" / "package", "two"), beside, store)
    assert (beside / "model" / "model.safetensors").read_text() == "two"
    assert {path.name for path in store.iterdir()} == {"package-1", "package-2"}


def test_the_link_of_an_earlier_version_is_replaced(places):
    made, beside, _ = places
    beside.symlink_to(made.relative_to(beside.parent))
    ship(*places)
    assert not beside.is_symlink()
    assert verify(made) == verify(beside) == []


@pytest.mark.parametrize("change", ["edited", "another folder"])
def test_what_somebody_changed_is_not_replaced(places, change):
    _, beside, store = places
    ship(*places)
    if change == "edited":
        (beside / "model" / "model.safetensors").write_text("mine")
    else:
        shutil.rmtree(beside)
        beside.mkdir()
        (beside / "notes.txt").write_text("mine")
    kept = {path.name: path.read_bytes() for path in beside.rglob("*") if path.is_file()}
    with pytest.raises(TrimlineError, match="Move it away"):
        ship(package(store / "package-2" / "package", "two"), beside, store)
    assert {path.name: path.read_bytes() for path in beside.rglob("*") if path.is_file()} == kept


def test_a_full_disk_leaves_the_package_that_was_there(places, monkeypatch):
    _, beside, store = places
    ship(*places)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.shipping.copy", full)
    with pytest.raises(TrimlineError, match="No space left"):
        ship(package(store / "package-2" / "package", "two"), beside, store)
    assert verify(beside) == []
    assert {path.name for path in store.iterdir()} == {"package-1", "package-2"}
