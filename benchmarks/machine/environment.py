"""Where the numbers were taken: what another reader needs to judge or repeat them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "llama-cpp-python",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "trimline",
)
ENGINES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu12", "polygraphy")
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
POWER_CAP = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CGROUP = Path("/sys/fs/cgroup")


def environment(threads: int) -> dict[str, Any]:
    """The environment block. What the system does not tell is None, never guessed."""
    return {
        "processor": processor_model(),
        "flags": processor_flags(),
        "cores": {"logical": psutil.cpu_count(), "physical": psutil.cpu_count(logical=False), "usable": usable_cores()},
        "threads": threads,
        "governor": _read(Path(GOVERNOR)),
        "frequency_mhz": _frequency(),
        "power_cap_watts": power_cap(),
        "huge_pages": huge_pages(),
        "memory_bytes": psutil.virtual_memory().total,
        "container": {"cpu_max": _read(CGROUP / "cpu.max"), "memory_max": _read(CGROUP / "memory.max")},
        "gpu": gpu(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "commit": commit(),
    }


def fingerprint(threads: int) -> dict[str, Any]:
    """What a measurement depends on: measured anew where it differs. Nothing in it changes from one minute to the next."""
    block = environment(threads)
    return {key: block[key] for key in ("processor", "flags", "cores", "threads", "memory_bytes", "container", "python", "versions")} | {
        "gpu": gpu("name,driver_version")
    }


def load_average() -> float:
    """Runnable processes, averaged over the last minute."""
    return os.getloadavg()[0]


def processor_model() -> str:
    """As the system names it."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def processor_flags() -> list[str]:
    """Instruction sets that decide which kernels run."""
    words = set((_read(Path("/proc/cpuinfo")) or "").split())
    return [flag for flag in FLAGS if flag in words]


def processor() -> str:
    """Model and flags, for a line below a table."""
    return f"{processor_model()} ({', '.join(processor_flags())})"


def usable_cores() -> list[int] | None:
    """Cores that this process may run on; None where the system has no affinity."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def versions() -> dict[str, str]:
    """Installed packages that take part in the measurement."""
    found = {}
    for name in (*RUNTIMES, *ENGINES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def software(block: Mapping[str, Any]) -> str:
    """Python and the versions of an environment block, for a line of text."""
    return ", ".join(f"{name} {number}" for name, number in {"python": block["python"], **block["versions"]}.items())


def gpu(fields: str = "name,driver_version,clocks.sm,power.limit") -> list[str] | None:
    """Name, driver, clock and power cap of every NVIDIA GPU, as nvidia-smi tells; None without one."""
    found = _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    return found.splitlines() if found else None


def power_cap(path: Path = POWER_CAP) -> float | None:
    """Of the first package, as powercap tells."""
    found = _read(path) or ""
    return int(found) / 1e6 if found.isdigit() else None


def huge_pages(path: Path = HUGE_PAGES) -> str | None:
    """When Linux gives pages of 2 MiB: ``always``, ``madvise`` or ``never``. In small pages a model's speed changes with every opening."""
    chosen = re.search(r"\[(\w+)\]", _read(path) or "")
    return chosen[1] if chosen else None


def commit() -> str | None:
    """Commit of the checkout that this file runs from, ``+`` where it was changed; None where it is installed."""
    here = str(Path(__file__).parent)
    head = _output(["git", "-C", here, "rev-parse", "HEAD"])
    if not head or _output(["git", "-C", here, "ls-files", Path(__file__).name]) is None:
        return None
    return head + ("+" if _output(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"]) else "")


def _frequency() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return frequency.current if frequency else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _output(command: list[str]) -> str | None:
    """What a tool prints; None where it is absent, fails, or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
