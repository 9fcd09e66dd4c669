"""What can be timed: which folder each runtime opens, and how."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.runtimes.llama_cpp import demand_llama_cpp
from benchmarks.runtimes.names import FORMS, GGUF, ON_GPU, PROVIDERS, Device, Runtime, computes_on
from benchmarks.runtimes.torch_compiled import demand_compiler
from exporters.onnx.running.device import CHAINS
from exporters.onnx.runtime import needs_genai, needs_runtime
from exporters.openvino.runtime import needs_openvino
from exporters.tensorrt.builders import demand_builder
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError

Opener = Callable[[Path, int], Any]


def demand(runtime: Runtime, *, gpu: bool = True) -> None:
    """Everything that a runtime needs of the machine that it is to run on. Nothing is loaded that needs a GPU.

    Args:
        runtime: as recipes name it.
        gpu: ask for its GPU, and what it needs of that, too; decoders do when they are opened.

    Raises:
        TrimlineError: ONNX Runtime is missing or installed twice; onnxruntime-genai, llama-cpp-python, openvino or TensorRT is missing;
            torch.compile has no compiler; there is no GPU, or ONNX Runtime was built for none.
    """
    if FORMS[runtime] == "onnx":
        needs_runtime()
    if runtime == "onnxruntime_genai":
        needs_genai()
    if FORMS[runtime] == "openvino":
        needs_openvino(*(["openvino_genai"] if runtime == "openvino_genai" else []))
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
    if FORMS[runtime] == "openvino":
        return _openvino_opener(runtime)
    if runtime == "tensorrt":
        from exporters.tensorrt.session import EngineDecoder

        return EngineDecoder
    return _torch_opener(runtime, computes_on(runtime, device))


def _torch_opener(runtime: Runtime, device: Device) -> Opener:
    if runtime == "torch_compile":
        from benchmarks.runtimes.torch_compiled import CompiledDecoder

        return partial(CompiledDecoder, device=device)
    from benchmarks.runtimes.torch_decoder import TorchDecoder

    return partial(TorchDecoder, sparse=runtime == "torch_2_4", device=device)


def _llama_opener(requests: Sequence[tuple[int, int, int]]) -> Opener:
    from benchmarks.runtimes.llama_cpp import CONTEXT, LlamaDecoder

    return partial(LlamaDecoder, context=max((prompt + output for prompt, output, _ in requests), default=CONTEXT))


def _openvino_opener(runtime: Runtime) -> Opener:
    import openvino  # noqa: F401

    if runtime == "openvino_genai":
        import openvino_genai  # noqa: F401

        from exporters.openvino.genai import GenaiSteps

        return GenaiSteps
    from exporters.openvino.session import OpenvinoDecoder

    return OpenvinoDecoder


def _onnx_opener(runtime: Runtime, requests: Sequence[tuple[int, int, int]]) -> Opener:
    import onnxruntime  # noqa: F401

    if runtime == "onnxruntime_genai":
        import onnxruntime_genai  # noqa: F401

        from exporters.onnx.running.genai import GenaiDecoder

        return GenaiDecoder
    from exporters.onnx.running.session import OnnxDecoder

    served: dict[str, Any] = {"served": tuple(requests)} if requests else {}
    return partial(OnnxDecoder, provider=PROVIDERS[runtime], **served)
