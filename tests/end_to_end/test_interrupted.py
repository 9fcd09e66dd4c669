"""Ctrl-C, SIGKILL, two runs at once, a full disk, a folder that cannot be written: what is left is whole, and goes on."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import trimline as api
from pipeline.artefacts.artefact import PARTIAL, RECORD, WORK
from pipeline.plan.plan import Plan
from tests.end_to_end.processes import Running
from tests.end_to_end.scenario import (
    OPTIONS,
    SETTINGS,
    assert_nothing_half_written,
    assert_refused,
    changed,
    command,
    computed_files,
    prose,
    recipe,
    tiny_inputs,
    trimline,
    written,
)

pytestmark = pytest.mark.usefixtures("quick_measuring")


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> dict[str, Any]:
    """A recipe that calibrates for a second or more, so that it can be caught at it."""
    inputs = tiny_inputs(tmp_path_factory.mktemp("slow"))
    (inputs / "calibration.txt").write_text(prose(1, 1500), encoding="utf-8")
    values = recipe("cfsp-least-squares", inputs)
    return changed(values, "prune", "calibration", to={"windows": 1500, "window": 64})


@pytest.fixture(scope="module")
def undisturbed(slow, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed")
    api.run(slow, output, options=OPTIONS)
    return same_named(output)


def same_named(output: Path) -> dict[str, str]:
    """Computed files; the key of the package depends on the output folder's name."""
    return {re.sub(r"^package-\w+", "package", name): digest for name, digest in computed_files(output).items()}


@pytest.mark.slow
def test_ctrl_c_says_one_sentence_and_the_same_command_goes_on(slow, undisturbed, tmp_path):
    path, output = written(slow, tmp_path), tmp_path / "out"
    with subprocess.Popen(
        command("run", path, "-o", output, *SETTINGS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(output.glob(f"store/{PARTIAL}measure*")):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    sentences = [line for line in stderr.splitlines() if "error:" in line]
    assert sentences == ["error: Interrupted. Finished stages are kept; the same command goes on from there."], stderr
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stdout == ""
    assert_nothing_half_written(output)
    assert not list(output.glob("store/measure-*"))
    again = api.run(path, output, options=OPTIONS)
    assert [name for name, artefact in again.artefacts.items() if artefact.skipped] == ["source", "text"]
    assert same_named(output) == undisturbed


# Where signals may come: each said by a thread as soon as the main thread has done so much.
BUSY = """
import os, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
from trimline.cli.ending import ended_by_itself
from trimline.cli.session import session
from pipeline.artefacts.artefact import whole_folder
from pipeline.common.children import Child, Words, module_command
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

def sleep():
    try:
        time.sleep(600)
    except BaseException:
        if "swallowed" in sys.argv:
            raise ValueError("could not determine the shape") from None  # as torch does while it asks for a length
        raise

def work():
    import typer
    try:
        with session(), whole_folder(Path("made/out")) as out:
            tempfile.mkdtemp()
            (out / "half").write_text("x")
            with Child(["sleep", "600"], Words("sleeps")) as child:
                print(child.pid, flush=True)
                sleep()
    except typer.Exit as end:
        sys.exit(end.exit_code)

def before():
    tempfile.mkdtemp()
    print(os.getpid(), flush=True)
    time.sleep(600)

ended_by_itself(before if "before" in sys.argv else work)
"""


@pytest.mark.parametrize(
    ("where", "number", "code"),
    [
        ("work", signal.SIGTERM, 143),
        ("work", signal.SIGHUP, 129),
        ("work", signal.SIGINT, 130),
        ("before", signal.SIGTERM, 143),
        ("swallowed", signal.SIGTERM, 143),
        ("swallowed", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_command_with_one_sentence_its_children_and_what_it_kept_for_a_while(tmp_path, where, number, code):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup a hang-up is ignored, and stays so
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        for _ in range(3):  # several are sent by some, and the first is enough
            process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
    begin = "error: Interrupted." if number == signal.SIGINT else f"error: Ended by {number.name}."
    assert stderr == f"{begin} Finished stages are kept; the same command goes on from there.\n"
    assert process.returncode == code
    assert not psutil.pid_exists(child)
    assert not list(scratch.iterdir())
    assert not list(tmp_path.glob("made/*"))


def test_what_was_ignored_stays_so(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, "nohup"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert "Ended by SIGTERM" in process.communicate(timeout=60)[1]


def test_an_interrupted_command_waits_for_no_thread():
    """As when the interrupt came while a library held the lock that its worker threads wait for."""
    stuck = (
        "import threading, sys; from trimline.cli.ending import ended_by_itself\n"
        "from trimline.cli.session import session\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "def command():\n"
        "    import typer\n"
        "    try:\n"
        "        with session(): raise KeyboardInterrupt\n"
        "    except typer.Exit as end: sys.exit(end.exit_code)\n"
        "ended_by_itself(command)"
    )
    done = subprocess.run([sys.executable, "-c", stuck], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert done.stderr.startswith("error: Interrupted.")


@pytest.mark.parametrize(
    ("verb", "number", "sentence"),
    [("prune", signal.SIGINT, "Interrupted"), ("prune", signal.SIGTERM, "Ended by SIGTERM"), ("evaluate", signal.SIGTERM, "SIGTERM")],
)
def test_a_single_verb_that_is_stopped_leaves_nothing_half_written(slow, tmp_path, verb, number, sentence):
    path = written(slow, tmp_path)
    arguments = (
        ("prune", path, "-o", tmp_path / "made" / "plan")
        if verb == "prune"
        else ("evaluate", slow["model"], "--window", 64, "--windows", 2000)
    )
    running = Running(tmp_path / "process", *arguments)
    if verb == "prune":
        assert running.until(tmp_path / "made", f"{PARTIAL}plan")
        time.sleep(0.2)
    else:
        time.sleep(1.0)
    running.send(number)
    assert_refused(running.end(), sentence, code=128 + number)
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())


def test_prune_goes_on_from_what_its_first_shot_measured(slow, tmp_path):
    few = changed(slow, "prune", "calibration", "windows", to=150)
    shots = changed(few, "prune", "steps", 0, "shots", to=4)
    path, made = written(shots, tmp_path), tmp_path / "made"
    running = Running(tmp_path / "process", "prune", path, "-o", made / "plan", *SETTINGS)
    assert running.until(made, f"{WORK}plan/measure-*/{RECORD}")
    running.send(signal.SIGTERM)
    assert_refused(running.end(), "the same command goes on", code=143)
    assert [place.name for place in made.glob(f"{WORK}*/*")] == [next(made.glob(f"{WORK}*/measure-*")).name]
    assert not (made / "plan").exists()
    told: list[api.Event] = []
    api.prune(path, made / "plan", options=OPTIONS, events=api.Events(told.append))
    assert [event.kind for event in told if event.kind.startswith("stage")] == ["stage_skipped"]
    assert [place.name for place in made.iterdir()] == ["plan"]
    whole = api.prune(path, tmp_path / "undisturbed", options=OPTIONS)
    assert whole.selection == Plan.read(made / "plan").selection
    for file in ("plan.json", "updates.safetensors", "scores.safetensors"):
        assert (made / "plan" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes(), file


def test_killed_again_and_again_it_still_finishes_with_the_same_bytes(slow, undisturbed, tmp_path):
    path, output, draw = written(slow, tmp_path), tmp_path / "out", random.Random(0)
    killed = 0
    for number, stage in enumerate(("measure", "measure", "rebuild", "export", "benchmark")):
        running = Running(tmp_path / f"process {number}", "run", path, "-o", output, *SETTINGS)
        if running.until(output / "store", f"{PARTIAL}{stage}*"):
            time.sleep(draw.random() * 0.3 * (stage == "measure"))
            running.send(signal.SIGKILL)
        killed += running.end().code == -signal.SIGKILL
    assert killed >= 3
    result = api.run(path, output, options=OPTIONS)
    assert any(artefact.skipped for artefact in result.artefacts.values())
    assert_nothing_half_written(output)
    assert same_named(output) == undisturbed


def test_two_runs_at_once_take_turns(slow, tmp_path):
    path, output = written(slow, tmp_path), tmp_path / "out"
    first = Running(tmp_path / "first", "run", path, "-o", output, *SETTINGS)
    assert first.until(output / "store", f"{PARTIAL}measure*")
    second = Running(tmp_path / "second", "run", path, "-o", output, *SETTINGS, "--json")
    ended = first.end(), second.end()
    assert [called.code for called in ended] == [0, 0], ended
    assert "another run works in" in ended[1].stderr
    assert {"source", "text", "prune", "rebuild", "export pruned", "benchmark"} <= set(ended[1].answer["skipped"])
    assert_nothing_half_written(output)


@pytest.mark.parametrize("kib", [16, 48, 400, 1500, 3000])
def test_a_full_disk_leaves_only_what_is_whole(inputs, tmp_path, kib):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here; the next test fills the disk by other means")
    try:
        called = trimline("run", written(recipe("cfsp-least-squares", inputs), tmp_path), "-o", disk / "out", *SETTINGS)
        assert_refused(called, "disk is full", "run the same command again")
        assert_nothing_half_written(disk / "out")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert trimline("run", tmp_path / "recipe.yaml", "-o", disk / "out", *SETTINGS).code == 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".txt", ".onnx", ".html"])
def test_a_disk_that_fills_at_a_kind_of_file(inputs, tmp_path, monkeypatch, suffix):
    """Whoever writes the file, and however the library beneath says that there is no space."""
    whole = Path.write_text

    def write_text(path: Path, *arguments: Any, **named: Any) -> int:
        if path.suffix == suffix and str(path).startswith(str(tmp_path / "out")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(path, *arguments, **named)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Path, "write_text", write_text)
    if suffix == ".safetensors":
        monkeypatch.setattr("pipeline.tensors.tensorfile.save_file", full)
    if suffix == ".onnx":
        monkeypatch.setattr("exporters.onnx.files.ir.save", full)
    called = trimline("run", written(recipe("cfsp-least-squares", inputs), tmp_path), "-o", tmp_path / "out", *SETTINGS)
    assert_refused(called, "disk is full", "run the same command again")
    assert_nothing_half_written(tmp_path / "out")


@pytest.mark.parametrize("verb", ["run", "prune", "export"])
@pytest.mark.parametrize("place", ["a file", "below a file", "no file system to write to"])
def test_an_output_that_cannot_be_written(inputs, tmp_path, verb, place):
    (tmp_path / "file").write_text("kept")
    output = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out", "no file system to write to": Path("/proc/out")}[
        place
    ]
    named = written(recipe("cfsp-least-squares", inputs), tmp_path) if verb != "export" else inputs / "model"
    assert_refused(trimline(verb, named, "-o", output), str(output.parent if verb != "run" else output))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_output_that_holds_something_is_left_alone(inputs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert_refused(trimline("export", inputs / "model", "-o", tmp_path / "out"), "exists already", "new or empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
