"""What could be timed on this machine: every runtime, and what it lacks."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.runtimes.names import FORMS, ON_EITHER, Form, Runtime
from benchmarks.runtimes.opening import demand
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError

OPENS: dict[Form, str] = {
    "onnx": "exported folders",
    "engine": "engines",
    "checkpoint": "checkpoints",
    "gguf": "exported folders, as GGUF",
    "openvino": "exported folders, in OpenVINO's form",
}
STUDIES = Path(__file__).parents[1] / "studies"  # left out of the wheel


@dataclass(frozen=True)
class Runnable:
    """One runtime.

    Attributes:
        runtime: as recipes call it, or what else times models here.
        opens: the kind of folder or file.
        how: the command that times in it.
        lacks: the sentence that says why it cannot run here; empty where it can.
        where: what it computes on here, where the run option decides.
    """

    runtime: str
    opens: str
    how: str
    lacks: str = ""
    where: str = ""


def runs_here() -> Iterator[Runnable]:
    """Every runtime that something in this project times, in a fixed order. Nothing is loaded that needs a GPU."""
    for runtime in get_args(Runtime):
        how = f"trimline bench --runtime {runtime}" if FORMS[runtime] == "gguf" else f"benchmark: {{runtime: {runtime}}}"
        yield Runnable(runtime, OPENS[FORMS[runtime]], how, _lack(runtime), _either() if runtime in ON_EITHER else "")
    yield Runnable("a server of OpenAI's protocol", "a URL", "python -m benchmarks.studies.serving.load", _clients_lack())
    yield Runnable("a Triton server", "a URL", "python -m benchmarks.studies.serving.load --protocol triton", _clients_lack())


def _lack(runtime: Runtime) -> str:
    try:
        demand(runtime)
    except TrimlineError as error:
        return error.problem
    return ""


def _clients_lack() -> str:
    if not STUDIES.is_dir():
        return "The client is in a checkout of Trimline only."
    return "" if importlib.util.find_spec("httpx2") else "httpx2 is not installed."


def _either() -> str:
    """Where torch computes: on the processor unless it is told otherwise, and what becomes of telling it."""
    devices = cuda_devices()
    if not devices:
        return "on cpu; the driver sees no GPU"
    torch: Any = importlib.import_module("torch")
    return f"on cpu, or with --device cuda on {devices[0]}" if torch.cuda.is_available() else "on cpu; this build of torch has no CUDA"
