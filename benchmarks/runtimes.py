"""What can be timed: which folder each runtime opens, and how."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from exporters.onnx.device import CHAINS, Provider
from exporters.onnx.runtime import needs_genai, needs_runtime
from exporters.tensorrt.builders import demand_builder
from pipeline.driver import cuda_devices
from pipeline.errors import TrimlineError

Runtime = Literal[
    "onnxruntime",
    "onnxruntime_genai",
    "onnxruntime_cuda",
    "onnxruntime_tensorrt",
    "tensorrt",
    "torch",
    "torch_compile",
    "torch_2_4",
    "llama_cpp",
]
Form = Literal["onnx", "engine", "checkpoint", "gguf"]
Device = Literal["cpu", "cuda"]
Multiplied = Literal["fp32", "fp16", "bf16"]  # what a ceiling is measured in
Opener = Callable[[Path, int], Any]

FORMS: dict[Runtime, Form] = {
    "onnxruntime": "onnx",
    "onnxruntime_genai": "onnx",
    "onnxruntime_cuda": "onnx",
    "onnxruntime_tensorrt": "onnx",
    "tensorrt": "engine",
    "torch": "checkpoint",
    "torch_compile": "checkpoint",
    "torch_2_4": "checkpoint",
    "llama_cpp": "gguf",
}
GGUF = "model.gguf"
ON_EITHER = {"torch", "torch_compile"}  # where the run option says
ON_GPU = {"onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "torch_2_4"}
PROVIDERS: dict[Runtime, Provider] = {"onnxruntime": "cpu", "onnxruntime_cuda": "cuda", "onnxruntime_tensorrt": "tensorrt"}
NO_LLAMA_CPP = "llama-cpp-python is not installed"


def computes_on(runtime: Runtime, device: Device) -> Device:
    """Where a runtime computes: most know one place only, whatever the run option says."""
    if runtime in ON_EITHER:
        return device
    return "cuda" if runtime in ON_GPU else "cpu"


def place(runtime: Runtime, device: Device) -> str:
    """The runtime, and where it computes if it can do so in two places."""
    return f"{runtime} on {device}" if runtime in ON_EITHER else runtime


def demand(runtime: Runtime, *, gpu: bool = True) -> None:
    """Everything that a runtime needs of the machine that it is to run on. Nothing is loaded that needs a GPU.

    Args:
        runtime: as recipes name it.
        gpu: ask for its GPU, and what it needs of that, too; decoders do when they are opened.

    Raises:
        TrimlineError: ONNX Runtime is missing or installed twice; onnxruntime-genai, llama-cpp-python or TensorRT is missing;
            torch.compile has no compiler; there is no GPU, or ONNX Runtime was built for none.
    """
    if FORMS[runtime] == "onnx":
        needs_runtime()
    if runtime == "onnxruntime_genai":
        needs_genai()
    if runtime == "torch_compile":
        demand_compiler()
    if runtime == "llama_cpp":
        demand_llama_cpp()
    if gpu and runtime in ON_GPU:
        _demand_gpu(runtime)


def _demand_gpu(runtime: Runtime) -> None:
    if not cuda_devices():
        raise TrimlineError(f"The runtime {runtime} needs a GPU, and the driver sees none here.", "Use runtime: onnxruntime.")
    if runtime == "tensorrt":
        demand_builder("tensorrt")
    if runtime in PROVIDERS:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        provider = CHAINS[PROVIDERS[runtime]][0]
        if provider not in onnxruntime.get_available_providers():
            raise TrimlineError(f"This build of ONNX Runtime has no {provider}.", "pip install 'trimline[gpu]'.")


def opener(runtime: Runtime, folder: Path | None = None, device: Device = "cpu", requests: Sequence[tuple[int, int, int]] = ()) -> Opener:
    """What opens a folder in that runtime, or a GGUF file in llama.cpp; what has to be imported is, before any clock runs.

    Args:
        runtime: as recipes name it.
        folder: what will be opened.
        device: of runtimes that know two.
        requests: prompt, output and batch of what will be timed, for a runtime that makes room for them when it opens.

    Raises:
        TrimlineError: ONNX Runtime is missing or installed twice, onnxruntime-genai or llama-cpp-python is missing, or
            torch.compile has no compiler.
    """
    if folder is not None and (folder / GGUF).is_file():
        runtime = "llama_cpp"
    demand(runtime, gpu=False)
    if FORMS[runtime] == "gguf":
        return _llama_opener(requests)
    if FORMS[runtime] == "onnx":
        return _onnx_opener(runtime, requests)
    if runtime == "tensorrt":
        from exporters.tensorrt.session import EngineDecoder

        return EngineDecoder
    return _torch_opener(runtime, computes_on(runtime, device))


def _torch_opener(runtime: Runtime, device: Device) -> Opener:
    if runtime == "torch_compile":
        from benchmarks.torch_compiled import CompiledDecoder

        return partial(CompiledDecoder, device=device)
    from benchmarks.torch_decoder import TorchDecoder

    return partial(TorchDecoder, sparse=runtime == "torch_2_4", device=device)


def _llama_opener(requests: Sequence[tuple[int, int, int]]) -> Opener:
    from benchmarks.llama_cpp import CONTEXT, LlamaDecoder

    return partial(LlamaDecoder, context=max((prompt + output for prompt, output, _ in requests), default=CONTEXT))


def demand_llama_cpp() -> None:
    """Of llama.cpp: its Python package, in this environment.

    Raises:
        TrimlineError: it cannot be imported.
    """
    try:
        importlib.import_module("llama_cpp")
    except ImportError as error:
        raise TrimlineError(f"A GGUF file is to be timed and {NO_LLAMA_CPP} ({error}).", "Run pip install llama-cpp-python.") from error


def _onnx_opener(runtime: Runtime, requests: Sequence[tuple[int, int, int]]) -> Opener:
    import onnxruntime  # noqa: F401

    if runtime == "onnxruntime_genai":
        import onnxruntime_genai  # noqa: F401

        from exporters.onnx.genai import GenaiDecoder

        return GenaiDecoder
    from exporters.onnx.session import OnnxDecoder

    served: dict[str, Any] = {"served": tuple(requests)} if requests else {}
    return partial(OnnxDecoder, provider=PROVIDERS[runtime], **served)


def demand_compiler() -> None:
    """Of torch.compile: Inductor writes C++ and has it compiled.

    Raises:
        TrimlineError: the compiler that it would call is not there.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise TrimlineError(f"torch.compile needs a C++ compiler, and there is no {compiler} here.",
                            "Install it (Debian: apt-get install g++), name another in CXX, or measure runtime: torch.")  # fmt: skip
