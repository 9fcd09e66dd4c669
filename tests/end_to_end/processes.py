"""Calls of the command line in processes of their own, which can be interrupted and killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import benchmarks.stage
from tests.end_to_end.scenario import Called, InProcess

SERVER = multiprocessing.get_context("forkserver")
# Imported once and forked from then on: torch and transformers take seconds to import.
SERVER.set_forkserver_preload(["tests.end_to_end.processes", "trimline.api", "pipeline.recover.training"])
PATIENCE = 120.0


class Running:
    """``trimline`` with these arguments, as a process; models are timed inside it."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        folder.mkdir(parents=True)
        self._out, self._err, self._temporary = folder / "stdout", folder / "stderr", folder / "tmp"
        self._temporary.mkdir()
        self._process = SERVER.Process(target=_call, args=(list(map(str, arguments)), self._out, self._err, self._temporary))
        self._process.start()

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    @property
    def left(self) -> list[Path]:
        """What lies in the place of the system's temporary folder."""
        return list(self._temporary.iterdir())

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """A signal, as the kernel delivers it."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def until(self, folder: Path, pattern: str) -> bool:
        """Waits until something of that name stands in the folder, and signals are heard; False where the process ended before."""
        hears = self._temporary.iterdir  # the command makes its own temporary folder once it does
        return _wait(lambda: any(hears()) and any(folder.glob(pattern)), lambda: not self._process.is_alive())

    def end(self) -> Called:
        """What it left, once it has ended."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, self.stderr
        return Called(self._process.exitcode, self._out.read_text(encoding="utf-8"), self.stderr)


def _wait(found: Callable[[], bool], ended: Callable[[], bool]) -> bool:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if found():
            return True
        if ended():
            return False
        time.sleep(0.001)
    raise AssertionError("nothing happened")


def _call(arguments: list[str], out: Path, err: Path, temporary: Path) -> None:
    from trimline.cli.app import main

    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)

    benchmarks.stage.BenchmarkWorker = InProcess  # type: ignore[misc, assignment]
    with _redirected(1, out), _redirected(2, err):
        sys.argv = ["trimline", *arguments]
        main()


@contextlib.contextmanager
def _redirected(descriptor: int, path: Path) -> Iterator[None]:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        (sys.stdout if descriptor == 1 else sys.stderr).flush()
