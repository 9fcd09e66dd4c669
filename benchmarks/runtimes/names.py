"""What runtimes are called, which form of a model each opens, and where it computes."""

from __future__ import annotations

from typing import Literal

from exporters.onnx.running.device import Provider

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
    "openvino",
    "openvino_genai",
]


Form = Literal["onnx", "engine", "checkpoint", "gguf", "openvino"]


Device = Literal["cpu", "cuda"]


Multiplied = Literal["fp32", "fp16", "bf16"]  # what a ceiling is measured in


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
    "openvino": "openvino",
    "openvino_genai": "openvino",
}


GGUF = "model.gguf"


ON_EITHER = {"torch", "torch_compile"}  # where the run option says


ON_GPU = {"onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "torch_2_4"}


PROVIDERS: dict[Runtime, Provider] = {"onnxruntime": "cpu", "onnxruntime_cuda": "cuda", "onnxruntime_tensorrt": "tensorrt"}


def computes_on(runtime: Runtime, device: Device) -> Device:
    """Where a runtime computes: most know one place only, whatever the run option says."""
    if runtime in ON_EITHER:
        return device
    return "cuda" if runtime in ON_GPU else "cpu"


def place(runtime: Runtime, device: Device) -> str:
    """The runtime, and where it computes if it can do so in two places."""
    return f"{runtime} on {device}" if runtime in ON_EITHER else runtime
