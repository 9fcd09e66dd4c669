"""The parent's end of an engine's build: starts the process, keeps its log, and turns its death into a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.checkpoint import write_json
from pipeline.errors import TrimlineError

MODULE = "exporters.tensorrt.worker"
CHATTER = "[X]"  # polygraphy's mark of the lines that tell of every kernel that was timed: gigabytes for a large model
SPARSITY = "(Sparsity"
ERROR_MARKS = ("[E]", "[!]")
LOG = "build.log"


def build_in_child(request: dict[str, Any], log: Path, module: str = MODULE) -> dict[str, Any]:
    """Runs one build; writes ``log`` line by line.

    Returns:
        What the worker found.

    Raises:
        TrimlineError: the builder refused the graph, or its process died.
        OSError: the disk is full, or the like.
    """
    with tempfile.TemporaryDirectory(prefix="trimline-build-") as scratch:
        asked, answered = Path(scratch) / "request.json", Path(scratch) / "reply.json"
        write_json(asked, request)
        # -P: a folder called "exporters" where the user happens to stand must not be taken for ours.
        command = [sys.executable, "-P", "-m", module, str(asked), str(answered)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            assert process.stdout is not None
            try:
                errors = _keep(process.stdout, log)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0 or not answered.is_file():
            raise _died(process.returncode, errors)
        found = dict(json.loads(answered.read_text(encoding="utf-8")))
    if found.get("errno"):
        raise OSError(found["errno"], os.strerror(found["errno"]), request["engine"])
    if "problem" in found:
        said = "; ".join(errors[-3:]) or found["problem"]
        raise TrimlineError(
            f"{request['builder']} builds no engine from {request['onnx']}: {said}",
            "`trimline doctor` shows its version; another precision or lowering of the export may do.",
        )
    return found


def log_lines(log: Path) -> Iterator[str]:
    """Lines of a build's log."""
    with log.open(encoding="utf-8") as file:
        yield from file


def warnings_of(log: Path, most: int = 20) -> list[str]:
    """The builder's first warnings and errors."""
    found = [line.strip() for line in log_lines(log) if line.startswith(("[W]", *ERROR_MARKS)) and "'colored'" not in line]
    return list(dict.fromkeys(found))[:most]


def _keep(stream: IO[str], log: Path) -> list[str]:
    """Copies a log but for its chatter; returns its errors."""
    errors = []
    with log.open("w", encoding="utf-8") as file:
        for line in stream:
            if CHATTER in line[:16] and SPARSITY not in line:
                continue
            file.write(line)
            if line.startswith(ERROR_MARKS):
                errors.append(" ".join(line[3:].split())[:300])
    return errors


def _died(code: int, errors: list[str]) -> TrimlineError:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    remedy = {
        -signal.SIGKILL: "It may have run out of memory: build a smaller model, or with a smaller batch.",
        -signal.SIGSEGV: "Check that the driver fits this TensorRT: `trimline doctor` shows both.",
    }.get(code, "`trimline doctor` shows driver and versions.")
    return TrimlineError(f"The process that builds the engine {how}{': ' + errors[-1] if errors else ''}.", remedy)


__all__ = ["LOG", "build_in_child", "log_lines", "warnings_of"]
