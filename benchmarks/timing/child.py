"""The parent's end of a worker: start it, ask it, end it. A worker that dies or hangs is an error, never a wait."""

from __future__ import annotations

import signal
import tempfile
from typing import Any

from pipeline.common import children
from pipeline.common.children import Words, module_command
from pipeline.common.errors import TrimlineError

PATIENCE = 900.0  # seconds without a reply after which a worker counts as hung
MODULE = "benchmarks.timing.worker"


class BenchmarkWorker(children.Child):
    """One worker process; a context manager that leaves no process behind.

    Args:
        name: what it measures, for messages.
        patience: seconds that one reply may take.
        module: what answers.
    """

    def __init__(self, name: str, patience: float = PATIENCE, module: str = MODULE) -> None:
        self.name = name
        # What a compiler in the process writes goes away with it, and no model is opened with what another left.
        self._compiled = tempfile.TemporaryDirectory(prefix="trimline-", ignore_cleanup_errors=True)
        caches = {"TORCHINDUCTOR_CACHE_DIR": self._compiled.name, "TRITON_CACHE_DIR": f"{self._compiled.name}/triton"}
        words = Words(
            f"measures {name}",
            {-signal.SIGKILL: "It may have run out of memory: measure a smaller batch or model."},
            hung="Measure a shorter workload, or look at what else the machine is doing.",
        )
        super().__init__(module_command(module), words, patience, environment=caches)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._compiled.cleanup()

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Raises:
            TrimlineError: the worker reports a user's error, has died, or gives no reply in time.
        """
        reply = self.reply(do, **what)
        if "problem" in reply:
            raise TrimlineError(f"{self.name}: {reply['problem']}", reply["remedy"])
        return reply
