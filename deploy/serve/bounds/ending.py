"""The end of the server: in order and in time, else cut off, and at the very last by force."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from pipeline.common.errors import TrimlineError

FLUSH = 1.0  # seconds for the last words to clients, before their connections are cut
FORCE = 3.0  # seconds after the deadline until the process ends, whatever still runs in it
LOST = 1.0  # seconds for what a lost process leaves to be told
TICK = 0.25


class Ending:
    """When the server has to have ended, and with what.

    A thread of its own looks at the clock, since whatever else is to end the process may be what hangs. It only reads plain
    attributes: signal handlers set them, and must take no lock.

    Args:
        grace: seconds for what runs and waits, once the server is told to end.
        kill: ends the processes of the server; must not wait.
    """

    def __init__(self, grace: float, kill: Callable[[], None]) -> None:
        self._grace, self._kill = grace, kill
        self._deadline: float | None = None
        self.problem: TrimlineError | None = None

    def start(self) -> None:
        """Begins to watch; the thread lives as long as the process."""
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def ask(self) -> None:
        """The server was told to end."""
        self._by(time.monotonic() + self._grace)

    def fail(self, problem: TrimlineError, within: float = LOST) -> None:
        """The server has to end for a reason; the first one counts."""
        self.problem = self.problem or problem
        self._by(time.monotonic() + within)

    @property
    def late(self) -> float:
        """Seconds since the deadline; negative before it, or where there is none."""
        return -1.0 if self._deadline is None else time.monotonic() - self._deadline

    def _by(self, deadline: float) -> None:
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def end(self) -> NoReturn:
        """Ends the process here and now, with one sentence where something is wrong.

        Python's own way out would wait for threads of libraries, and take seconds to clean up what the system cleans up at once.
        """
        self._kill()
        sys.stdout.flush()
        if self.problem:
            os.write(2, f"error: {self.problem.problem} {self.problem.remedy}\n".encode())
        os._exit(2 if self.problem else 0)

    def _watch(self) -> None:
        while self.late < FORCE:
            time.sleep(TICK)
        self.end()
