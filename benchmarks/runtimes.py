"""What can be timed: which folder each runtime opens, and how."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import TrimlineError

Runtime = Literal["onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "torch", "torch_2_4"]
Form = Literal["onnx", "engine", "checkpoint"]
Opener = Callable[[Path, int], Any]

FORMS: dict[Runtime, Form] = {
    "onnxruntime": "onnx",
    "onnxruntime_cuda": "onnx",
    "onnxruntime_tensorrt": "onnx",
    "tensorrt": "engine",
    "torch": "checkpoint",
    "torch_2_4": "checkpoint",
}
GGUF = "model.gguf"
ON_GPU = set(FORMS) - {"onnxruntime"}


def opener(runtime: Runtime, folder: Path | None = None) -> Opener:
    """What opens a folder in that runtime, or a GGUF file in llama.cpp; what has to be imported is, before any clock runs.

    Raises:
        TrimlineError: ONNX Runtime is missing or installed twice, or llama-cpp-python is missing.
    """
    if folder is not None and (folder / GGUF).is_file():
        return _llama_opener()
    if FORMS[runtime] == "onnx":
        return _onnx_opener(runtime)
    if runtime == "tensorrt":
        from exporters.tensorrt.session import EngineDecoder

        return EngineDecoder
    from benchmarks.torch_decoder import TorchDecoder

    return partial(TorchDecoder, sparse=runtime == "torch_2_4")


def _llama_opener() -> Opener:
    from benchmarks.llama_cpp import NOT_RUN, LlamaDecoder

    try:
        importlib.import_module("llama_cpp")
    except ImportError as error:
        raise TrimlineError(f"A GGUF file is to be timed and {NOT_RUN} ({error}).", "Run pip install llama-cpp-python.") from error
    return LlamaDecoder


def _onnx_opener(runtime: Runtime) -> Opener:
    from exporters.onnx.runtime import needs_runtime

    needs_runtime()
    import onnxruntime  # noqa: F401

    if runtime == "onnxruntime":
        from exporters.onnx.session import OnnxDecoder

        return OnnxDecoder
    from exporters.onnx.providers import ProviderDecoder

    return partial(ProviderDecoder, provider=runtime.removeprefix("onnxruntime_"))
