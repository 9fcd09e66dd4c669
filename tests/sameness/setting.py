"""What digests hold for: another processor or library adds up in another order and rounds otherwise; Python brings the built-in text."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "numpy", "scipy", "gguf"),
    *("onnx", "onnx-ir", "onnxscript", "ml_dtypes", "onnxruntime", "onnxruntime-genai", "llama-cpp-python"),
)
# Instruction sets that torch, its BLAS, ONNX Runtime or numpy choose their kernels by.
INSTRUCTIONS = frozenset(
    (
        *("fma", "f16c", "avx", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("avx512_fp16", "amx_bf16", "amx_int8", "amx_tile", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
    )
)


def present_setting() -> dict[str, str]:
    """The processor, Python and the libraries of this process; what is not there is ``none``."""
    processor = {
        "machine": platform.machine(),
        "vendor": _cpu_facts("vendor_id", "CPU implementer"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": " ".join(sorted(INSTRUCTIONS & set(_cpu_facts("flags", "Features").split()))),
    }
    return processor | {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _cpu_facts(*keys: str) -> str:
    """What the first processor has under the first of these keys."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "none"
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in facts if key.strip() in keys), "none")
