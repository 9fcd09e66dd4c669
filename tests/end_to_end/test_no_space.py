"""No space, no permission, no input any more, another clock, another process: a sentence, nothing half-written, and on it goes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pipeline.artefacts.artefact
import trimline as api
from pipeline.artefacts.artefact import PARTIAL, WORK
from pipeline.common.errors import explain
from pipeline.common.events import Event, Events
from tests.end_to_end.disks import disk, largest_file, size_of
from tests.end_to_end.processes import Running
from tests.end_to_end.scenario import (
    OPTIONS,
    SETTINGS,
    Called,
    assert_nothing_half_written,
    assert_refused,
    computed_files,
    recipe,
    tiny_inputs,
    trimline,
    written,
)
from tests.quick import quick_alone
from trimline.verify.folders import verify_folder

pytestmark = pytest.mark.usefixtures("quick_measuring")


class Made:
    """Every verb that writes a folder, with inputs that are there."""

    def __init__(self, inputs: Path, folder: Path) -> None:
        self.folder, self.recipe = folder, written(recipe("cfsp-least-squares", inputs), folder)
        self.dense = inputs / "model"
        (folder / "training").mkdir()
        training = {"kind": "full", "steps": 3, "batch": 4, "micro_batch": 4, "windows": 8, "window": 24, "save_every": 1}
        self.training = written(recipe("cfsp-least-squares", inputs) | {"recover": training}, folder / "training")
        api.run(self.recipe, folder / "run", options=OPTIONS)

    def verb(self, name: str, out: Path) -> tuple[object, ...]:
        store = self.folder / "run" / "store"
        plan, smaller = (next(store.glob(f"{stage}-*")) for stage in ("prune", "rebuild"))
        first, second = sorted(store.glob("export-*"))
        accuracy = (part for name in ("dense", second.name) for part in ("--perplexity", f"{name}=10"))
        return {
            "run": ("run", self.recipe, "-o", out, *SETTINGS),
            "prune": ("prune", self.recipe, "-o", out, *SETTINGS),
            "rebuild": ("rebuild", self.dense, plan, "-o", out, "--profile", "decilm", "--threads", 1),
            "recover": ("recover", self.training, smaller, "-o", out, *SETTINGS),
            "export": ("export", self.dense, "-o", out, "--threads", 1),
            "gguf": ("export", self.dense, "-o", out, "--format", "gguf", "--precision", "fp32", "--threads", 1),
            "bench": ("bench", first, second, "-o", out, *accuracy, "--recipe", self.recipe, "--threads", 1),
            "report": ("report", self.folder / "run", "-o", out),
            "package": ("package", self.folder / "run" / "package", "--for", "onnxruntime-genai", "-o", out, "--threads", 1),
        }[name]


VERBS = ("run", "prune", "rebuild", "recover", "export", "gguf", "bench", "report", "package")
LIMITS = [*((verb, 500 if verb == "bench" else 20_000) for verb in VERBS), ("run", 500)]  # bytes of a file


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick_measuring) -> Made:
    folder = tmp_path_factory.mktemp("made")
    return Made(tiny_inputs(folder / "inputs"), folder)


def assert_no_room(called: Called, words: str) -> None:
    """numpy, which writes a GGUF's tensors, does not say why it could not."""
    numpys = "there was no room for all of it" in called.stderr
    assert_refused(called, "Free some space" if numpys else words)


def assert_only_the_output(verb: str, place: Path) -> None:
    """A run's folder stays, to go on with; a training keeps its states beside the output; of the others nothing is left."""
    left = [path.name for path in place.iterdir()]
    if verb == "run":
        assert left in ([], ["out"])
    else:
        assert all(verb == "recover" and name.startswith(f"{WORK}out-") for name in left), left


@pytest.mark.parametrize("verb", quick_alone(VERBS, ("prune", "rebuild", "export", "package")))
def test_every_verb_on_a_full_disk(made, tmp_path, verb):
    assert trimline(*made.verb(verb, tmp_path / "whole")).code == 0
    needed = size_of(tmp_path / "whole")
    for share in (0.03, 0.5, 0.85):
        with disk(tmp_path / "disk", max(4, int(needed * share))) as place:
            assert_no_room(trimline(*made.verb(verb, place / "out")), "disk is full")
            assert_nothing_half_written(place / "out")
            assert_only_the_output(verb, place)
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            assert trimline(*made.verb(verb, place / "out")).code == 0
            assert [path.name for path in place.iterdir()] == ["out"]


@pytest.mark.parametrize(("verb", "size"), quick_alone(LIMITS, [("run", 500), ("rebuild", 20_000), ("gguf", 20_000)], unpacked=True))
def test_every_verb_under_a_limit_on_the_size_of_files(made, tmp_path, verb, size):
    with largest_file(size):
        called = trimline(*made.verb(verb, tmp_path / "out"))
    assert_no_room(called, "grew beyond what a limit or the file system allows")
    assert_nothing_half_written(tmp_path / "out")
    assert_only_the_output(verb, tmp_path)
    assert trimline(*made.verb(verb, tmp_path / "out")).code == 0


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_after_any_number_of_pages(made, tmp_path):
    needed, draw = size_of(made.folder / "run"), random.Random(int(os.environ.get("FUZZ_SEED", "0")))
    for _ in range(100):
        with disk(tmp_path / "disk", 4 * draw.randint(2, int(needed * 0.8) // 4)) as place:
            assert_refused(trimline(*made.verb("run", place / "out")), "disk is full", "run the same command again")
            assert_nothing_half_written(place / "out")
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            assert trimline(*made.verb("run", place / "out")).code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_where_nothing_may_be_written(made, tmp_path, verb):
    with disk(tmp_path / "disk", 64) as place:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert_refused(trimline(*made.verb(verb, place / "out")), "no permission to write or read", "Name another output folder")


GOING = {
    "the model": ("source", "prune", "export (dense)"),
    "a text": ("source",),
    "the texts that were read": ("prune",),
    "the plan": ("rebuild",),
    "the smaller checkpoint": ("evaluate (pruned)", "package"),
    "an export": ("benchmark",),
}


GONE = [(thing, stage) for thing, stages in GOING.items() for stage in stages]


@pytest.mark.parametrize(("thing", "stage"), quick_alone(GONE, [GONE[0], GONE[len(GONE) // 2], GONE[-1]], unpacked=True))
def test_an_input_that_goes_while_the_run_goes_on(inputs, tmp_path, thing, stage):
    values = recipe("cfsp-least-squares", Path(shutil.copytree(inputs, tmp_path / "inputs")))
    output, away = tmp_path / "out", tmp_path / "away"
    places = {"the model": "inputs/model", "a text": "inputs/calibration.txt", "the texts that were read": "out/store/text-*"}
    places |= {"the plan": "out/store/prune-*", "the smaller checkpoint": "out/store/rebuild-*", "an export": "out/store/export-*"}
    gone: list[Path] = []

    def take(event: Event) -> None:
        if event.kind == "stage_started" and event.stage == stage and not gone:
            gone.append(next(iter(sorted(tmp_path.glob(places[thing])))))
            gone[0].rename(away)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind; what the command line makes of it counts
        api.run(values, output, options=OPTIONS, events=Events(take))
    sentence, code = explain(caught.value)
    assert (code, "Something went wrong inside" in sentence) == (2, False), sentence
    assert sentence.endswith(".")
    away.rename(gone[0])
    assert_nothing_half_written(output)
    api.run(values, output, options=OPTIONS)
    assert verify_folder(output, quick=True, options=OPTIONS, events=Events()).problems == []


def test_a_clock_that_was_set_back(inputs, tmp_path, monkeypatch):
    class Back(datetime):
        """Every look at the clock is a day earlier than the last."""

        looks = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.looks += 1
            return datetime(2001, 1, 1, tzinfo=UTC) - timedelta(days=cls.looks)

    values, output = recipe("cfsp-least-squares", inputs), tmp_path / "out"
    api.run(values, output, options=OPTIONS)
    before = computed_files(output)
    for number, path in enumerate(sorted(output.rglob("*"))):
        os.utime(path, (4e9, 4e9) if number % 2 else (1, 1), follow_symlinks=False)
    monkeypatch.setattr(pipeline.artefacts.artefact, "datetime", Back)
    again = api.run(values, output, options=OPTIONS)
    assert all(artefact.skipped for artefact in again.artefacts.values())
    api.run(values, tmp_path / "other", options=OPTIONS)
    assert Back.looks > 5
    other = computed_files(tmp_path / "other")
    assert {name: digest for name, digest in other.items() if "package" not in name} == {
        name: digest for name, digest in before.items() if "package" not in name
    }


def test_two_processes_that_write_the_same_folder(made, tmp_path):
    first = Running(tmp_path / "first", *made.verb("export", tmp_path / "out"))
    assert first.until(tmp_path, f"{PARTIAL}out")
    second = Running(tmp_path / "second", *made.verb("export", tmp_path / "out")).end()
    assert_refused(second, "Another process is writing", "exists already" if "exists" in second.stderr else "Wait for it")
    assert first.end().code == 0
    assert verify_folder(tmp_path / "out", quick=True, options=OPTIONS, events=Events()).problems == []
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "out"}


def test_what_a_killed_verb_left_is_cleared_by_the_next(made, tmp_path):
    killed = Running(tmp_path / "killed", *made.verb("export", tmp_path / "out"))
    assert killed.until(tmp_path, f"{PARTIAL}out")
    killed.send(signal.SIGKILL)
    assert killed.end().code == -signal.SIGKILL
    assert (tmp_path / f"{PARTIAL}out").exists()
    assert trimline(*made.verb("export", tmp_path / "out")).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"killed", "out"}
