"""What could be timed on this machine: every runtime, and what it lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from benchmarks.runtimes import FORMS, Form, Runtime, demand_compiler, demand_llama_cpp
from exporters.onnx.providers import CHAINS, demand_gpu
from exporters.onnx.runtime import needs_genai, needs_runtime
from exporters.tensorrt.builders import demand_builder
from pipeline.driver import cuda_devices
from pipeline.errors import TrimlineError

OPENS: dict[Form, str] = {"onnx": "exported folders", "engine": "engines", "checkpoint": "checkpoints", "gguf": "exported folders, as GGUF"}


@dataclass(frozen=True)
class Runnable:
    """One runtime.

    Attributes:
        runtime: as recipes call it, or what else times models here.
        opens: the kind of folder or file.
        how: the command that times in it.
        lacks: the sentence that says why it cannot run here; empty where it can.
    """

    runtime: str
    opens: str
    how: str
    lacks: str = ""


def runs_here() -> Iterator[Runnable]:
    """Every runtime that something in this project times, in a fixed order. Nothing is loaded that needs a GPU."""
    for runtime in get_args(Runtime):
        how = f"trimline bench --runtime {runtime}" if FORMS[runtime] == "gguf" else f"benchmark: {{runtime: {runtime}}}"
        yield Runnable(runtime, OPENS[FORMS[runtime]], how, _lack(_demands(runtime)))
    client = "" if importlib.util.find_spec("httpx2") else "httpx2 is not installed."
    yield Runnable("a server of OpenAI's protocol", "a URL", "python -m benchmarks.served", client)
    yield Runnable("a Triton server", "a URL", "python -m benchmarks.served --protocol triton", client)


def _demands(runtime: Runtime) -> Callable[[], object]:
    def on_provider() -> None:
        needs_runtime()
        provider = CHAINS[runtime.removeprefix("onnxruntime_")][0]
        demand_gpu(provider)
        _demand_provider(provider)

    if runtime == "onnxruntime":
        return needs_runtime
    if runtime == "onnxruntime_genai":
        return needs_genai
    if runtime == "llama_cpp":
        return demand_llama_cpp
    if FORMS[runtime] == "onnx":
        return on_provider
    if runtime == "tensorrt":
        return lambda: demand_builder("tensorrt")
    if runtime == "torch_compile":
        return demand_compiler
    return _demand_cuda if runtime == "torch_2_4" else lambda: None


def _demand_provider(provider: str) -> None:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise TrimlineError(f"This build of ONNX Runtime has no {provider}.", "pip install 'trimline[gpu]'.")


def _demand_cuda() -> None:
    if not cuda_devices():
        raise TrimlineError("torch's semi-structured kernels need a GPU, and the driver sees none here.", "Use runtime: torch.")


def _lack(demand: Callable[[], object]) -> str:
    try:
        demand()
    except TrimlineError as error:
        return error.problem
    return ""
