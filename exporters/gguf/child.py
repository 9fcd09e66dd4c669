"""llama.cpp, through llama-cpp-python in whatever environment has it, as a child process: a crash of its C++ ends the child only."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from pipeline.common.children import Child, Died, Words, ask_once, script_command
from pipeline.common.errors import TrimlineError

VARIABLE = "TRIMLINE_LLAMA_CPP"
MODULE = "llama_cpp"
RUNNER = Path(__file__).with_name("runner.py")
HOW = f"pip install llama-cpp-python here, or let {VARIABLE} name the Python of an environment that has it."


def llama_cpp_python() -> Path | None:
    """The Python that has llama-cpp-python: the one that ``TRIMLINE_LLAMA_CPP`` names, else this one; None without any.

    Raises:
        TrimlineError: the variable names no file.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise TrimlineError(f"{VARIABLE} names {named}, which is no file.", f"Let it name a Python that has {MODULE}, or unset it.")
        return Path(named)
    return Path(sys.executable) if importlib.util.find_spec(MODULE) else None


def quantise(python: Path, model: Path, out: Path, kind: str, threads: int) -> None:
    """Lets llama.cpp quantise ``model`` into ``out``.

    Raises:
        TrimlineError: it does not.
    """
    file_type = gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    job = {"model": str(model), "out": str(out), "file_type": int(file_type), "threads": threads}
    answer = run(python, "quantise", job)
    if answer["status"] or not out.is_file():
        raise TrimlineError(f"llama.cpp could not quantise {model} as {kind} (status {answer['status']}).", "Use another kind.")


def measure(
    python: Path, model: Path, rows: list[list[int]], windows: list[list[int]], text: str, prompt: list[int], greedy: int, threads: int
) -> dict[str, Any]:
    """What llama.cpp makes of a file: ``logits`` of rows of equal length, ``losses`` of windows, ids of ``text``, ``greedy`` tokens.

    Raises:
        TrimlineError: it does not load the file, or dies.
    """
    with tempfile.TemporaryDirectory(prefix="trimline-llama-") as scratch:
        saved = Path(scratch) / "logits.f32"
        job = {"model": str(model.resolve()), "logits": str(saved), "threads": threads}
        answer = run(python, "measure", job | {"rows": rows, "windows": windows, "text": text, "prompt": prompt, "greedy": greedy})
        return answer | {"logits": np.fromfile(saved, np.float32).reshape(answer["shape"])}


def run(python: Path, task: str, job: dict[str, Any]) -> dict[str, Any]:
    """One job of ``runner.py``.

    Raises:
        TrimlineError: the child failed; its last words are in the message.
    """
    try:
        return ask_once(Child(script_command(python, RUNNER), Words("runs llama.cpp")), task, **job)
    except Died as died:
        raise TrimlineError(f"llama.cpp failed on {job['model']} (exit {died.code}): {_reason(died.said)}", HOW) from None


def _reason(said: Sequence[str]) -> str:
    """The lines of a dead child that name an error, else its last words."""
    errors = [line for line in said if "error" in line.lower()]
    return " / ".join((errors or said)[-2:])[-400:] or "it said nothing"
