"""How much memory a process holds."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def process_memory() -> dict[str, int | None]:
    """Bytes of this process: ``peak`` resident, and ``anonymous`` resident now.

    ``peak`` counts file pages that are mapped in (weights that are read in place); ``anonymous`` does not, so it is
    what a second server of the same model would add. It is None where the system does not tell.
    """
    status = _status()
    if "VmHWM" in status:
        return {"peak": status["VmHWM"], "anonymous": status.get("RssAnon")}
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale, "anonymous": None}


def _status() -> dict[str, int]:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}
