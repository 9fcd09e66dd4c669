"""A file that is touched is the same; one that is written to, replaced, removed or added is not, and nothing is made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts import inputs
from pipeline.artefacts.artefact import whole_folder
from pipeline.artefacts.inputs import Watched, known_digest
from pipeline.common.errors import TrimlineError

OLD = 1_600_000_000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for name in ("a.bin", "b.bin", ".hidden"):
        (folder / name).write_text("weights")
        os.utime(folder / name, (OLD, OLD))
    return folder


def replace(folder: Path) -> None:
    (folder / "new").write_text("weightz")
    os.utime(folder / "new", (OLD, OLD))
    (folder / "new").rename(folder / "b.bin")


CHANGES: dict[str, Callable[[Path], object]] = {
    "written to": lambda folder: (folder / "b.bin").write_text("weightz"),
    "longer": lambda folder: ((folder / "b.bin").write_text("weights!"), os.utime(folder / "b.bin", (OLD, OLD))),
    "replaced": replace,
    "gone": lambda folder: (folder / "b.bin").unlink(),
    "new": lambda folder: (folder / "b2.bin").write_text("more"),
    "all gone": lambda folder: folder.rename(folder.with_name("away")),
}
SAME: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "read": lambda folder: (folder / "b.bin").read_text(),
    "hidden": lambda folder: (folder / ".hidden").write_text("x"),
    "below": lambda folder: (folder / "below" / "c").write_text("x"),
    "mode": lambda folder: (folder / "b.bin").chmod(0o600),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("summed", [False, True])
def test_what_changed_is_named_and_nothing_is_kept(place, tmp_path, what, summed):
    watched = Watched(place)
    if summed:
        known_digest(place / "b.bin")
    with (
        pytest.raises(TrimlineError, match="changed while it was being read") as caught,
        whole_folder(tmp_path / "out", watched.demand_unchanged),
    ):
        CHANGES[what](place)
    assert str(place / ("a.bin" if what == "all gone" else "b")) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", SAME)
def test_what_stays_the_same_is_no_change(place, tmp_path, what):
    with whole_folder(tmp_path / "out", Watched(place, tmp_path / "absent").demand_unchanged):
        SAME[what](place)
    assert (tmp_path / "out").is_dir()


def test_a_file_that_was_only_touched_is_the_same_where_its_sum_is_known(place):
    watched = Watched(place / "a.bin", place / "b.bin")
    known_digest(place / "a.bin")
    os.utime(place / "a.bin")
    assert watched.changed() is None
    os.utime(place / "b.bin")
    assert watched.changed() == place / "b.bin"  # never summed, so nobody knows


def test_a_file_is_summed_again_only_where_it_is_another(place, monkeypatch):
    read: list[Path] = []
    whole = inputs.file_digest
    monkeypatch.setattr(inputs, "file_digest", lambda path: read.append(path) or whole(path))
    first = known_digest(place / "a.bin")
    assert (known_digest(place / "a.bin"), len(read)) == (first, 1)
    (place / "a.bin").write_text("weightz")
    assert known_digest(place / "a.bin") != first
    known_digest(place / "a.bin")
    assert len(read) == 3  # it was changed a moment ago, and may be changed again within one tick of the clock
