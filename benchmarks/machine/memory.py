"""How much memory a process holds."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

EVERY = 0.01  # seconds between two looks


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


class AnonymousPeak:
    """The most anonymous memory that this process holds while the context is open, in bytes.

    The system keeps no such record, so a thread looks every hundredth of a second: what comes and goes between two looks
    is missed. ``bytes`` is None where the system does not tell.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        self._look()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        now = process_memory()["anonymous"]
        if now is not None:
            self.bytes = max(now, self.bytes or 0)


def _status() -> dict[str, int]:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}
