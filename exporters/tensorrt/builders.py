"""The two programs that build engines, and whether they can run here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError


@dataclass(frozen=True)
class Builder:
    """One of NVIDIA's builders.

    Attributes:
        name: in the recipe.
        module: that Python imports.
        needs_gpu: it times kernels on the GPU that it builds for.
        install: what gets it.
        proves: what a finished build on a machine without a GPU says.
    """

    name: str
    module: str
    needs_gpu: bool
    install: str
    proves: str


BUILDERS = {
    "tensorrt": Builder(
        "tensorrt",
        "tensorrt",
        needs_gpu=True,
        install="pip install 'trimline[tensorrt]' (its libraries come from NVIDIA's own package index).",
        proves="the engine ran on this GPU and computes what the graph computes",
    ),
    "tensorrt_rtx": Builder(
        "tensorrt_rtx",
        "tensorrt_rtx",
        needs_gpu=False,
        install="pip install --no-deps tensorrt-rtx-cu12 tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs",
        proves="the graph is parsed and compiled; not that TensorRT itself builds it, that it runs, how fast, or with which kernels",
    ),
}
POLYGRAPHY = "polygraphy"
BUILDABLE = ("fp32", "fp16")  # bf16 has no reference on the processor to compare with; int8 and int4 graphs hold foreign operators


def demand_builder(name: str, devices: Callable[[], list[str] | None] = cuda_devices) -> Builder:
    """The builder of that name, where it can work on this machine.

    The driver is asked before TensorRT is imported: its runtime crashes the process where there is none.

    Raises:
        TrimlineError: the builder, polygraphy, a driver or a GPU is missing.
    """
    builder = BUILDERS[name]
    if builder.needs_gpu and not devices():
        what = "no NVIDIA driver" if devices() is None else "an NVIDIA driver but no GPU"
        raise TrimlineError(
            f"TensorRT builds engines on the GPU that runs them, and this machine has {what}.",
            "Build there, or use builder: tensorrt_rtx, which needs none.",
        )
    for module, install in ((builder.module, builder.install), (POLYGRAPHY, "pip install polygraphy.")):
        if importlib.util.find_spec(module) is None:
            raise TrimlineError(f"{module} is not installed.", install)
    return builder


def demand_buildable(precision: str, where: str) -> None:
    """Whether an engine can be built, and compared, from a graph of that precision.

    Args:
        where: what states it; the sentence goes on with ``in bf16``.

    Raises:
        TrimlineError: it cannot.
    """
    if precision not in BUILDABLE:
        raise TrimlineError(
            f"{where} in {precision}, and TensorRT engines are built from {' and '.join(BUILDABLE)} graphs only.",
            "Export in one of these; build.precision int8 makes int8 of it.",
        )


def installed_version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
