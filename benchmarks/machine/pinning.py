"""Keeping a process on a fixed set of cores."""

from __future__ import annotations

import os
from pathlib import Path

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def pin(threads: int, process: int = 0) -> list[int]:
    """Confines a process, by default this one, to ``threads`` of the cores that this one may use, and says which.

    Threads that another process has started already stay where they are, so it is pinned before it starts any.

    Distinct physical cores come first: two hardware threads of one core share what a matrix product needs. Systems
    without affinity (macOS, Windows) are left alone, and the answer is then only a count.
    """
    if not hasattr(os, "sched_setaffinity"):
        return list(range(threads))
    cores = by_physical_core(sorted(os.sched_getaffinity(0)))[:threads]
    os.sched_setaffinity(process, cores)
    return sorted(cores)


def by_physical_core(cores: list[int]) -> list[int]:
    """The same cores, those that share no physical core with an earlier one first."""
    seen: set[str] = set()
    first: list[int] = []
    later: list[int] = []
    for core in cores:
        siblings = _siblings(core)
        (later if siblings in seen else first).append(core)
        seen.add(siblings)
    return first + later


def _siblings(core: int) -> str:
    try:
        return Path(SIBLINGS.format(core)).read_text(encoding="utf-8").strip()
    except OSError:
        return str(core)
