"""SIGKILL, SIGTERM and SIGINT at any moment: what is left is whole, the same command goes on, and the bytes are those of an unbroken run."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.artefact import MEASURED, PARTIAL, file_digest
from pipeline.artefacts.sums import SUMS, check_sums
from pipeline.common.events import Events
from tests.end_to_end.processes import Running
from tests.end_to_end.scenario import OPTIONS, SETTINGS, assert_nothing_half_written, prose, recipe, tiny_inputs, written
from trimline.verify.folders import verify_folder

CODES = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
STAGES = ("source", "text", "measure", "prune", "rebuild", "recover", "evaluate", "export", "benchmark", "report", "package")
# What holds a time, a latency or a date, or the sum of a file that does.
MEASURING = re.compile(rf"(.*/)?({re.escape(MEASURED)}|{SUMS})|(benchmark|report)-.*|package-.*/(manifest\.json|report\.(html|md))")


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict[str, Any]:
    inputs = tiny_inputs(tmp_path_factory.mktemp("inputs"))
    (inputs / "calibration.txt").write_text(prose(1, 200), encoding="utf-8")
    wanted = recipe("cfsp-least-squares", inputs)
    wanted["prune"]["calibration"] = {"windows": 100, "window": 64}
    wanted["recover"] = {"kind": "full", "steps": 6, "batch": 4, "windows": 8, "window": 24, "save_every": 1}
    return wanted | {"package": {"targets": ["onnxruntime-genai"], "licence": "apache-2.0"}}


class Runs:
    """Runs of one recipe, or of a sweep of it, into one place, and what one leaves that nobody stops."""

    def __init__(self, values: dict[str, Any], folder: Path, verb: str = "run", *grid: str) -> None:
        self.recipe, self.folder, self.output = written(values, folder), folder, folder / "out"
        self._verb, self._grid = verb, grid
        self._number = 0
        running = self.start()
        assert running.until(self.output / "store", ".lock")  # before it, Python was imported
        started = time.monotonic()
        done = running.end()
        self.seconds = time.monotonic() - started
        assert done.code == 0, done.stderr
        self.computed = computed(self.output)

    def start(self, *, anew: bool = False) -> Running:
        """The same command as a process; ``anew``: into an empty place."""
        if anew:
            shutil.rmtree(self.output)
        self._number += 1
        return Running(self.folder / f"process {self._number}", self._verb, self.recipe, "-o", self.output, *SETTINGS, *self._grid)

    def stop(self, running: Running, number: signal.Signals) -> bool:
        """Sends the signal; whether it came in time. What heard of it has cleaned up behind itself, and says one sentence."""
        if running.alive:
            running.send(number)
        done = running.end()
        if done.code not in CODES[number]:
            assert done.code == 0, done.stderr
            return False
        if number != signal.SIGKILL:
            assert done.stderr.count("error: ") == 1, done.stderr
            assert "Traceback" not in done.stderr
            assert running.left == []
            assert not list(self.output.glob(f"store/{PARTIAL}*"))
        return True

    def check(self) -> None:
        """Whether what lies there now is what the unbroken run left."""
        assert computed(self.output) == self.computed
        if self._grid:
            assert {path.name for path in self.output.iterdir()} == {"store", "points", "sweep.html", "sweep.json", "sweep.md"}
            stages = [path for path in (self.output / "store").iterdir() if path.name != ".lock"]
            assert {path: check_sums(path) for path in stages} == dict.fromkeys(stages, [])
            return
        assert_nothing_half_written(self.output)
        assert verify_folder(self.output, quick=True, options=OPTIONS, events=Events()).problems == []


@pytest.fixture(scope="module")
def runs(values, tmp_path_factory) -> Runs:
    return Runs(values, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def sweeps(values, tmp_path_factory) -> Runs:
    return Runs(values, tmp_path_factory.mktemp("sweeps"), "sweep", "--grid", "prune.steps.0.budget.ffn.remove=0.5,0.25")


def computed(output: Path) -> dict[str, str]:
    """SHA-256 of every file that is computed; keys hold the code and the recipe and stay in the names."""
    found = {}
    for path in (output / "store").rglob("*"):
        name = path.relative_to(output / "store").as_posix()
        if path.is_file() and name != ".lock" and not MEASURING.fullmatch(name):
            found[name] = file_digest(path)
    return found


def test_the_same_recipe_twice_is_the_same_bytes(runs):
    assert len(runs.computed) > 40
    assert {name.split("-")[0] for name in runs.computed} == {*STAGES} - {"benchmark", "report"}
    assert runs.start(anew=True).end().code == 0
    runs.check()


@pytest.mark.slow
def test_stopped_in_every_stage(runs):
    draw, killed = random.Random(6), set()
    for stage in STAGES:
        running = runs.start(anew=stage == STAGES[0])
        if running.until(runs.output / "store", f"*{stage}-*"):  # half-written, or whole already: some take a millisecond
            time.sleep(draw.random() * 0.02)
        if runs.stop(running, draw.choice([*CODES])):
            killed.add(stage)
    assert len(killed) >= len(STAGES) - 3, killed  # the last ones may be over before the signal comes
    assert runs.start().end().code == 0
    runs.check()


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
def test_stopped_at_random_moments(runs, sweeps):
    """KILLS moments spread over a run and a sweep, each from an empty folder: stopped there, begun again, compared."""
    kills = int(os.environ.get("KILLS", "100"))
    draw = random.Random(int(os.environ.get("FUZZ_SEED", "0")))
    stopped = [stopped_once(sweeps if number % 3 == 2 else runs, draw, (number + draw.random()) / kills) for number in range(kills)]
    assert sum(stopped) >= kills // 2


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on(sweeps):
    draw = random.Random(3)
    assert stopped_once(sweeps, draw, 0.5)


def stopped_once(runs: Runs, draw: random.Random, moment: float) -> bool:
    """Begins in an empty folder, stops at a share of the time that all of it takes, goes on and compares; whether it came in time."""
    running = runs.start(anew=True)
    if running.until(runs.output / "store", ".lock"):
        time.sleep(moment * runs.seconds)
    stopped = runs.stop(running, draw.choice([*CODES]))
    assert runs.start().end().code == 0
    runs.check()
    return stopped
