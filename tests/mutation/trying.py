"""Mutants tried one after the other, each in a child process that inherits the slow imports.

Runs inside a copy of the repository, where the mutated file is written for as long as its tests run: what reads our files
as text, or starts another process, sees the mutant too.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.drawing import Mutant
from tests.mutation.rooms import QUICK, naming, tests_of

MEMORY = 12 * 2**30  # addresses; a mutated size may ask for anything
PATIENCE, AT_LEAST = 6.0, 60.0  # times what the tests take unmutated under coverage, and seconds of the processor
STALLED = 4.0  # times as much by the clock ends what waits for ever
LIVED, NO_TESTS = 0, 5
# What takes seconds to import.
SLOW = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "accelerate", "hypothesis", "scipy.optimize",
    "pydantic", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "gguf", "tokenizers", "safetensors.torch",
)  # fmt: skip


class Killer:
    """Pytest's plugin: which test failed first."""

    def __init__(self) -> None:
        self.found = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.found:
            self.found = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.found:
            self.found = f"collecting {report.nodeid}"


class Trier:
    """Knows which tests to run.

    Args:
        work: a folder for what tests write.
        covered: what ``covering.cover`` wrote; without, the files of tests that name the mutated module are run.
    """

    def __init__(self, work: Path, covered: Mapping[str, Any] | None = None) -> None:
        self.work, self.covered = work, covered
        self.seconds: Mapping[str, float] = covered["seconds"] if covered else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in covered["others"] if covered else SLOW:
                _imported(name)

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that run the mutant's line, the quickest first; where it runs on import, those that run anything of its file."""
        if self.covered is None:
            return naming(mutant.path, Path())
        by_line: dict[str, list[str]] = self.covered["lines"].get(mutant.path, {})
        found = set(by_line.get(str(mutant.line), ()))
        if not found or "" in found:
            found = {test for tests in by_line.values() for test in tests}
        room = tests_of(mutant.path)
        chosen = [test for test in found if test.startswith(f"{room}/")]
        return sorted(chosen, key=lambda test: (self.seconds.get(test, 0.0), test))

    def outcome(self, mutant: Mutant) -> dict[str, Any]:
        """``killed``, ``late`` (killed by its time limit), ``lived`` or ``unreached``, by which test, in how many seconds."""
        tests, path = self.tests(mutant), Path(mutant.path)
        if not tests:
            return {"outcome": "unreached", "tests": 0}
        original, start = path.read_text(encoding="utf-8"), time.monotonic()
        _write(path, mutant.source(Path()))
        try:
            code, killer = self._run(tests)
        finally:
            _write(path, original)
        said = {LIVED: "lived", NO_TESTS: "unreached", None: "late", -signal.SIGXCPU: "late"}.get(code, "killed")
        return {"outcome": said, "tests": len(tests), "by": killer, "seconds": round(time.monotonic() - start, 1)}

    def _run(self, tests: Sequence[str]) -> tuple[int | None, str]:
        limit = AT_LEAST + PATIENCE * sum(self.seconds.get(test, 5.0) for test in tests)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _be_child(tests, self.work, write, limit)
        os.close(write)
        code = _waited(child, STALLED * limit)
        with os.fdopen(read) as said:
            return code, said.read()


def _write(path: Path, text: str) -> None:
    """And lets go of what Python compiled of it, which it would take for the new one's within the same second."""
    path.write_text(text, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


def _be_child(tests: Sequence[str], work: Path, write: int, seconds: float) -> None:
    """Runs tests and never returns."""
    code = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        killer = Killer()
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", QUICK, "--basetemp", str(work / "tests"), *tests]
        code = int(pytest.main(arguments, plugins=[killer]))
        os.write(write, killer.found.encode()[:4000])
    finally:
        os._exit(code)


def _waited(child: int, limit: float) -> int | None:
    """Its exit code; None where it was ended at the limit, with all that it started."""
    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _imported(name: str) -> None:
    """What cannot be imported by itself is left to the child."""
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001 - modules of others, which may raise anything
        return


def main(work: Path, covered: Path | None) -> None:
    """Takes a mutant per line of standard input and answers with a line."""
    trier = Trier(work, json.loads(covered.read_text()) if covered else None)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(trier.outcome(Mutant(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
