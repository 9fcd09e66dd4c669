"""The parent's end of building and running an engine: starts the process, keeps its log, and turns its death into a sentence."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from exporters.tensorrt.folder import LOG
from pipeline.common.children import Child, Words, ask_once, module_command
from pipeline.common.errors import TrimlineError

MODULE = "exporters.tensorrt.worker"
CHATTER = "[X]"  # polygraphy's mark of the lines that tell of every kernel that was timed: gigabytes for a large model
SPARSITY = "(Sparsity"
ERROR_MARKS = ("[E]", "[!]")
REMEDIES = {
    -signal.SIGKILL: "It may have run out of memory: take a smaller model, or build with a smaller batch.",
    -signal.SIGSEGV: "Check that the driver fits this TensorRT: `trimline doctor` shows both.",
}
Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
Pieces = Sequence[tuple[int, int]]


def build_in_child(request: dict[str, Any], log: Path, module: str = MODULE) -> dict[str, Any]:
    """Runs one build; writes ``log`` line by line.

    Returns:
        What the worker found.

    Raises:
        TrimlineError: the builder refused the graph, or its process died.
        OSError: the disk is full, or the like.
    """
    found, errors = _answer("build", request, log, module)
    if found.get("errno"):
        raise OSError(found["errno"], os.strerror(found["errno"]), request["engine"])
    if "problem" in found:
        said = "; ".join(errors[-3:]) or found["problem"]
        raise TrimlineError(
            f"{request['builder']} builds no engine from {request['onnx']}: {said}",
            "`trimline doctor` shows its version; another precision or lowering of the export may do.",
        )
    return found


def run_in_child(folder: Path, ids: Ids, paths: Mapping[str, Pieces], module: str = MODULE) -> tuple[str, dict[str, Logits]]:
    """Feeds an engine some tokens, along several paths.

    Args:
        folder: that the build stage wrote.
        ids: (rows, tokens).
        paths: by name, the pieces that the tokens are fed in, one after another: (start, end) each.
        module: what answers.

    Returns:
        The engine's precision; and of every path the logits, those of its pieces behind each other.

    Raises:
        TrimlineError: the engine does not open here, refuses the shapes, or ends its process.
        OSError: the disk is full, or the like.
    """
    with tempfile.TemporaryDirectory(prefix="trimline-run-") as scratch:
        place = Path(scratch) / "logits.safetensors"
        request = {"folder": str(folder.resolve()), "ids": ids.tolist(), "paths": dict(paths), "logits": str(place)}
        found, _ = _answer("run", request, Path(scratch) / LOG, module)
        if found.get("errno"):
            raise OSError(found["errno"], os.strerror(found["errno"]), found.get("file") or str(place))
        if "problem" in found:
            if "remedy" in found:  # the worker's own two sentences
                raise TrimlineError(found["problem"], found["remedy"])
            raise TrimlineError(
                f"The engine in {folder} does not run here: {found['problem']}.", "`trimline doctor` shows driver and versions."
            )
        return str(found["precision"]), load_file(place)


def _answer(do: str, request: Mapping[str, Any], log: Path, module: str) -> tuple[dict[str, Any], list[str]]:
    """What a process of its own answers, and the errors that it logged on the way."""
    words = Words(f"{do}s the engine", REMEDIES, "`trimline doctor` shows driver and versions.")
    with log.open("w", encoding="utf-8") as file:
        child = Child(module_command(module), words, hear=partial(_heard, file))
        return ask_once(child, do, **request), child.said


def log_lines(log: Path) -> Iterator[str]:
    """Lines of a build's log."""
    with log.open(encoding="utf-8") as file:
        yield from file


def warnings_of(log: Path, most: int = 20) -> list[str]:
    """The builder's first warnings and errors."""
    found = [line.strip() for line in log_lines(log) if line.startswith(("[W]", *ERROR_MARKS)) and "'colored'" not in line]
    return list(dict.fromkeys(found))[:most]


def _heard(log: IO[str], line: str) -> str | None:
    """Copies a line into the log, but for chatter; what it says if it is an error."""
    if CHATTER in line[:16] and SPARSITY not in line:
        return None
    log.write(line)
    return " ".join(line[3:].split())[:300] if line.startswith(ERROR_MARKS) else None


__all__ = ["build_in_child", "log_lines", "run_in_child", "warnings_of"]
