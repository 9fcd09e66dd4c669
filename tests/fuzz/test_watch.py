"""The watch over the cases sees what it is for."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common.errors import TrimlineError
from tests.fuzz import watch
from tests.fuzz.kinds import EVIL, WITNESS
from tests.fuzz.watch import judged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a case takes is read from /proc")


def refuse(out: Path) -> None:
    raise TrimlineError("This is no model.", "Give a model.")


def crash(out: Path) -> None:
    raise TypeError("'int' object is not iterable")


def mumble(out: Path) -> None:
    raise TrimlineError("no model", "")


def compute(out: Path) -> None:
    while True:
        pass


def wait(out: Path) -> None:
    time.sleep(0.3)


def grow(out: Path) -> None:
    assert b"x" * (256 * 2**20)  # far above the bar: other threads, and the system's file cache, may shrink the process meanwhile


def ask_for_everything(out: Path) -> None:
    bytearray(2**40)


def write_beside(out: Path) -> None:
    (out.parent / "beside").write_text("x")


def write_elsewhere(out: Path) -> None:
    place = Path.home() / ".trimline-watch"
    place.write_text("x")
    place.unlink()


def change_input(out: Path) -> None:
    os.utime(out.parent / "input", (1, 1))


def start(out: Path) -> None:
    subprocess.run(["true"], check=True)


def connect(out: Path) -> None:
    with socket.socket() as caller, pytest.raises(OSError, match="refused"):
        caller.connect(("127.0.0.1", 9))


def run_code(out: Path) -> None:
    (out.parent / "evil.py").write_text(EVIL)
    namespace = {"__file__": str(out.parent / "evil.py")}
    exec(EVIL, namespace)  # noqa: S102 - what must not happen


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (crash, "TypeError"),
        (mumble, "no problem and remedy"),
        (compute, "Hang"),
        (wait, "took 0."),
        (grow, "MiB"),
        (ask_for_everything, "MemoryError"),
        (write_beside, "beside"),
        (write_elsewhere, ".trimline-watch"),
        (change_input, "beside its output"),
        (start, "subprocess.Popen"),
        (connect, "socket.connect"),
        (run_code, WITNESS),
    ],
)
def test_misbehaviour_is_seen(case: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_text("x")
    if case in (compute, wait):
        monkeypatch.setattr(watch, "SECONDS", 0.2)
    monkeypatch.setattr(watch, "MOST_BYTES", 16 * 2**20)
    gc.collect()  # what earlier tests left would else be freed while the case grows
    assert said in (judged(case, tmp_path) or "")


def test_good_behaviour_is_not(tmp_path: Path) -> None:
    assert judged(refuse, tmp_path) is None
    assert judged(lambda out: (out.mkdir(), (out / "a").write_text("x")), tmp_path) is None
