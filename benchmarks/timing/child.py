"""The parent's end of a worker: start it, ask it, end it. A worker that dies or hangs is an error, never a wait."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from pipeline.common.errors import TrimlineError

PATIENCE = 900.0  # seconds without a reply after which a worker counts as hung
MODULE = "benchmarks.timing.worker"


class Child:
    """One worker process; a context manager that leaves no process behind.

    Args:
        name: what it measures, for messages.
        patience: seconds that one reply may take.
    """

    def __init__(self, name: str, patience: float = PATIENCE, module: str = MODULE) -> None:
        self.name = name
        self._patience = patience
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # -P: a folder called "benchmarks" where the user happens to stand must not be taken for ours.
        # What a compiler in the process writes goes away with it, and no model is opened with what another left.
        self._compiled = tempfile.TemporaryDirectory(prefix="trimline-", ignore_cleanup_errors=True)
        caches = {"TORCHINDUCTOR_CACHE_DIR": self._compiled.name, "TRITON_CACHE_DIR": f"{self._compiled.name}/triton"}
        command = [sys.executable, "-P", "-m", module]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._complaints, bufsize=0, env=os.environ | caches)
        self._unread = b""

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()
        self._compiled.cleanup()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Raises:
            TrimlineError: the worker reports a user's error, has died, or gives no reply in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None
        reply = json.loads(self._line())
        if "problem" in reply:
            raise TrimlineError(f"{self.name}: {reply['problem']}", reply["remedy"])
        return reply

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._patience
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TrimlineError(
                    f"The process that measures {self.name} gave no answer for {self._patience:.0f} s.",
                    "Measure a shorter workload, or look at what else the machine is doing.",
                )
            received = os.read(self._process.stdout.fileno(), 2**16)
            if not received:
                raise self._died()
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _died(self) -> TrimlineError:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        remedy = "It may have run out of memory: measure a smaller batch or model." if code == -signal.SIGKILL else ""
        return TrimlineError(f"The process that measures {self.name} {how}{': ' + said[-1] if said else ''}.", remedy)
