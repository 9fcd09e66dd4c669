"""How much memory, and how many cores, this process may use."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

from pipeline.common.errors import TrimlineError

CGROUP = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # cgroup v2, v1
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory() -> int:
    """Bytes: the machine's memory, or its container's limit where that is lower."""
    total, limit = psutil.virtual_memory().total, memory_limit(CGROUP)
    return min(total, limit or total)


def memory_limit(root: Path) -> int | None:
    """Bytes that the control group allows; None where it sets no limit."""
    for name in LIMITS:
        try:
            text = (root / name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def parse_bytes(text: str) -> int:
    """``4GiB``, ``4 GB`` or ``4000000000`` as bytes.

    Raises:
        TrimlineError: it is no amount of memory.
    """
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise TrimlineError(f"{text!r} is no amount of memory.", "Write it like 4GiB or 500MB.")
    return int(float(found[1]) * UNITS[found[2]])
