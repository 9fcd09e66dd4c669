"""The machine: interpreter, processor, memory, disk, GPU driver."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from pipeline.common.driver import cuda_devices
from pipeline.common.memory import CGROUP, memory_limit
from pipeline.common.options import processor_has_bf16
from trimline.doctor.finding import Finding
from trimline.reporting import formats

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
SMALL_MEMORY = 4 * 2**30
SMALL_DISK = 5 * 10**9
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def examine_machine(folder: Path) -> Iterator[Finding]:
    """Everything that is not a Python package; ``folder`` is where results would be written."""
    yield Finding("Python", platform.python_version())
    yield _torch()
    yield _processor()
    yield memory(psutil.virtual_memory().total, memory_limit(CGROUP))
    yield disk(folder)
    yield driver()
    yield _browser()


def _torch() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    value = f"{torch.__version__}, {threads} threads, {cores} cores usable"
    if threads > cores:
        return Finding("torch", value, "warn", f"More threads than cores slow everything down: set OMP_NUM_THREADS={cores}.")
    return Finding("torch", value)


def _processor() -> Finding:
    words = set(_text(Path("/proc/cpuinfo")).split())
    known = [name for name in INSTRUCTIONS if name in words]
    value = f"{platform.machine()}: {', '.join(known) or 'instruction sets unknown'}"
    if processor_has_bf16():
        return Finding("Processor", value)
    advice = "Calibration runs in float32: this processor has no bf16 instructions."
    return Finding("Processor", value, "missing", advice)


def memory(total: int, limit: int | None) -> Finding:
    """What this process may use: the machine's memory, or its container's limit where that is lower."""
    usable = min(total, limit or total)
    value = formats.size(usable) + (f" (container's limit; the machine has {formats.size(total)})" if usable < total else "")
    if usable < SMALL_MEMORY:
        return Finding("Memory", value, "warn", f"Models beyond a few hundred million parameters will not fit into {formats.size(usable)}.")
    return Finding("Memory", value)


def disk(folder: Path) -> Finding:
    """Free space where results would be written."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    value = f"{formats.size(free)} free"
    if free < SMALL_DISK:
        advice = "A run keeps the dense and the smaller model, each as checkpoint and as ONNX: free some space."
        return Finding("Disk", value, "warn", advice)
    return Finding("Disk", value)


def driver() -> Finding:
    """NVIDIA's driver, asked directly: GPU packages are installable without one, and some of them crash then."""
    devices = cuda_devices()
    if devices is None:
        return Finding("GPU", "no NVIDIA driver", "missing", "Everything runs on the processor; --device cuda needs a driver.")
    if not devices:
        return Finding("GPU", "a driver, but no GPU", "warn", "Check nvidia-smi, or the container's --gpus option.")
    if not torch.cuda.is_available():
        return Finding("GPU", ", ".join(devices), "warn", "This torch is a processor build: install a CUDA build to use the GPU.")
    return Finding("GPU", ", ".join(devices))


def _browser() -> Finding:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found:
        return Finding("Browser for report tests", Path(found).name)
    return Finding(
        "Browser for report tests", "none", "missing", "Reports need none; their browser tests are skipped (apt install chromium)."
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
