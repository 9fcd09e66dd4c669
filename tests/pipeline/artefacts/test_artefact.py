"""Artefact folders: keys, skipping, nothing half-written, one run at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artefacts.artefact import MEASURED, PARTIAL, RECORD, digest, exclusive, folder_digest, make_artefact, whole_folder
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json

DEPENDS = {"inputs": {"source": "a"}, "recipe": {"remove": 0.5}, "code": "1"}


def make(store: Path, depends=DEPENDS, text: str = "made", stage: str = "prune", events: Events | None = None):
    return make_artefact(store, stage, depends, lambda out: (out / "a.txt").write_text(text), events or Events())


def test_the_same_key_is_skipped(tmp_path):
    told: list[Event] = []
    first, again = make(tmp_path, events=Events(told.append)), make(tmp_path, text="other", events=Events(told.append))
    assert (first.skipped, again.skipped) == (False, True)
    assert (first.key, first.folder, first.seconds) == (again.key, again.folder, again.seconds)
    assert (again.folder / "a.txt").read_text() == "made"
    assert [event.kind for event in told] == ["stage_started", "stage_finished", "stage_skipped"]


def test_every_dependency_changes_the_key(tmp_path):
    changes = [
        DEPENDS | {"inputs": {"source": "b"}},
        DEPENDS | {"recipe": {"remove": 0.4}},
        DEPENDS | {"code": "2"},
        DEPENDS | {"more": None},
    ]
    keys = {make(tmp_path, depends).key for depends in (DEPENDS, *changes)} | {make(tmp_path, stage="rebuild").key}
    assert len(keys) == 6
    assert make(tmp_path, dict(reversed(DEPENDS.items()))).key == make(tmp_path).key


def test_records_say_what_it_came_from(tmp_path):
    made = make(tmp_path)
    assert read_json(made.folder / RECORD) == {"stage": "prune", "key": made.key, "depends": DEPENDS}
    assert read_json(made.folder / MEASURED)["seconds"] == made.seconds
    assert made.folder.name == f"prune-{made.key[:12]}"


@pytest.mark.parametrize("error", [TrimlineError("no"), OSError(28, "full"), KeyboardInterrupt(), SystemExit(1)])
def test_what_fails_leaves_nothing(tmp_path, error):
    def work(out: Path) -> None:
        (out / "half.txt").write_text("half")
        raise error

    events = Events()
    with pytest.raises(type(error)):
        make_artefact(tmp_path, "prune", DEPENDS, work, events)
    assert list(tmp_path.iterdir()) == []
    assert events.stage == ""  # what the same caller does next is told under its own name
    assert not make(tmp_path).skipped


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(TrimlineError, match=f"{name} exists already"), whole_folder(tmp_path / name):
            raise AssertionError("never entered")
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as partial:
        (partial / "a").write_text("ours")
    assert (tmp_path / "empty" / "a").read_text() == "ours"


def test_leftovers_of_a_killed_run_go_when_the_next_begins(tmp_path):
    leftover = tmp_path / f"{PARTIAL}prune-123"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    made = make(tmp_path)
    with exclusive(tmp_path, Events()):
        assert not leftover.exists()
        assert made.folder.exists()


def test_only_one_run_holds_a_store(tmp_path):
    order: list[str] = []
    told: list[Event] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with exclusive(tmp_path, Events(told.append)):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with exclusive(tmp_path, Events()):
        inside.set()
        other.join(0.3)
        order.append("first")
    other.join(20)
    assert order == ["first", "second"]
    assert "another run works in" in told[0].text


def test_folder_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    before = folder_digest(tmp_path)
    (tmp_path / ".hidden").write_text("no matter")
    assert folder_digest(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = folder_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, folder_digest(tmp_path)}) == 3


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False))))
def test_digest_is_blind_to_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))
