"""Which ONNX Runtime is installed. Two of its distributions in one environment overwrite each other's files."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from pipeline.common.errors import TrimlineError

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def distributions() -> dict[str, str]:
    """Installed ONNX Runtime distributions and their versions."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def needs_runtime() -> None:
    """Demands exactly one ONNX Runtime.

    Raises:
        TrimlineError: none is installed, or both are: they share one folder, so what runs is whichever came last.
    """
    found = distributions()
    if not found:
        raise TrimlineError("ONNX Runtime is not installed.", "pip install 'trimline[cpu]' (or 'trimline[gpu]').")
    if len(found) > 1:
        listed = " and ".join(f"{name} {number}" for name, number in found.items())
        raise TrimlineError(
            f"{listed} are both installed, and overwrite each other's files.",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them.",
        )


def has_genai() -> bool:
    """Whether onnxruntime-genai can be imported."""
    return importlib.util.find_spec("onnxruntime_genai") is not None


def needs_genai() -> None:
    """Demands onnxruntime-genai.

    Raises:
        TrimlineError: it is not installed.
    """
    if not has_genai():
        raise TrimlineError("onnxruntime-genai is not installed.", "pip install onnxruntime-genai.")


def needs_builder() -> None:
    """Demands what the fused lowering is built with.

    Raises:
        TrimlineError: onnxruntime-genai or ONNX Runtime is missing.
    """
    needs_runtime()
    if not has_genai():
        raise TrimlineError(
            "The fused lowering is built by onnxruntime-genai, which is not installed.",
            "pip install onnxruntime-genai, or use lowering: portable.",
        )


def load_libraries(providers: Iterable[str]) -> None:
    """Loads what GPU providers link to: pip puts NVIDIA's libraries beside Python's packages, where no loader looks for them.

    Raises:
        TrimlineError: the TensorRT provider is among them and Python's package ``tensorrt``, which holds its libraries, cannot be imported.
    """
    wanted = set(providers)
    if wanted & {CUDA, TENSORRT}:
        import onnxruntime

        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find; a system's own CUDA may do instead
            getattr(onnxruntime, "preload_dlls", lambda: None)()
    if TENSORRT in wanted:
        try:
            importlib.import_module("tensorrt")
        except (ImportError, OSError) as error:
            raise TrimlineError(
                f"The execution provider {TENSORRT} runs on the libraries of Python's package tensorrt, which cannot be imported ({error}).",
                "Run pip install 'trimline[tensorrt]' (its libraries come from NVIDIA's own package index), or use another provider.",
            ) from error


def provider_refusal(provider: str, why: str) -> TrimlineError:
    """What is said where an execution provider was asked for and cannot be had; ``why`` ends the sentence."""
    return TrimlineError(f"The execution provider {provider} was asked for and {why}.", f"Install what it needs, or use {CPU}.")
