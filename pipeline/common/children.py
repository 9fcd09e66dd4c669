"""Child processes of ours: one JSON object per line in, one JSON object per line out.

A child reads requests from stdin and writes a reply to each to stdout. All else that it and its libraries print goes to stderr,
where the parent looks for the reason when a child dies. A reply with ``problem`` tells of a user's error. While a child lives
its parent holds its stdin open, so that a parent that dies, however it does, ends its children in the middle of their work.

This is the parent's end; ``pipeline.common.answering`` is the child's. A script for an environment that lacks this code speaks
the same protocol by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from pipeline.common.errors import TrimlineError

MOST_LINES = 10_000  # of what a child says, kept for the sentence about its death
GRACE = 5.0  # seconds for the last lines of a dead child; a grandchild may hold the pipe open for longer
Record = dict[str, Any]


def module_command(module: str, *arguments: str) -> list[str]:
    """``python -m module`` in this environment. -P: what lies where the user happens to stand must not be taken for ours."""
    return [sys.executable, "-P", "-m", module, *arguments]


def script_command(python: Path, script: Path) -> list[str]:
    """A script in another environment, whose Python may be too old for -P. -I says as much, and keeps our PYTHONPATH out."""
    return [str(python), "-I", str(script)]


@dataclass(frozen=True)
class Words:
    """How to speak of a child.

    Attributes:
        does: what it does: ``measures dense``.
        remedies: what the user can do about an exit status; negative: about a signal.
        remedy: about any other.
        hung: about a child that gives no answer.
    """

    does: str
    remedies: Mapping[int, str] = field(default_factory=dict)
    remedy: str = ""
    hung: str = "Look at what else the machine is doing."


class Died(TrimlineError):
    """A child has ended unasked, or has failed.

    Args:
        code: its exit status; negative: the signal.
        said: lines that it said, the last ones last.
    """

    def __init__(self, words: Words, code: int, said: Sequence[str]) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        last = f": {said[-1]}" if said else ""
        super().__init__(f"The process that {words.does} {how}{last}.", words.remedies.get(code, words.remedy))
        self.code, self.said = code, said


class Child:
    """One process; a context manager that leaves none behind.

    Args:
        command: see ``module_command`` and ``script_command``.
        words: for messages.
        patience: seconds that one reply may take; None for as long as it takes.
        hear: is told of every line that is no reply, in a thread; gives back what of it belongs into a message, or None.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        words: Words,
        patience: float | None = None,
        hear: Callable[[str], str | None] = str.strip,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._words, self._patience, self._hear = words, patience, hear
        self._said: deque[str] = deque(maxlen=MOST_LINES)
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._fault: BaseException | None = None
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=os.environ | (environment or {}),
            encoding="utf-8",
            errors="replace",
            # What a terminal or a service manager sends to all is the parent's to hear: it ends its children, and theirs.
            process_group=0 if os.name == "posix" else None,
        )
        # Threads, since not every system can wait for two pipes at once.
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._take, self._listen)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        self._join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):  # what a dead child did not read
                if pipe is not None and not any(reader.is_alive() for reader in self._readers):
                    pipe.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def said(self) -> list[str]:
        """What of its lines belongs into a message."""
        return list(self._said)

    def ask(self, do: str, **what: Any) -> Record:
        """Sends one request and waits for its reply.

        Raises:
            TrimlineError: the child reports a user's error, has died, or gives no reply in time.
        """
        reply = self.reply(do, **what)
        if "problem" in reply:
            raise TrimlineError(reply["problem"], reply.get("remedy", ""))
        return reply

    def reply(self, do: str, **what: Any) -> Record:
        """The same, but a user's error is given back as it came: ``problem`` and what else the child says of it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
            self._process.stdin.flush()
        except OSError:  # it reads no more
            raise self._death() from None
        try:
            line = self._lines.get(timeout=self._patience)
        except Empty:
            raise TrimlineError(
                f"The process that {self._words.does} gave no answer for {self._patience:.0f} s.", self._words.hung
            ) from None
        if line is None:
            raise self._death()
        return dict(json.loads(line))

    def finish(self) -> None:
        """Lets the process end by itself, and hears all that it has to say.

        Raises:
            TrimlineError: it fails on its way out.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        code = self._process.wait()
        self._join()
        if code or self._fault:
            raise self._death()

    def _death(self) -> BaseException:
        code = self._process.wait()
        self._join()
        return self._fault or Died(self._words, code, self.said)

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(GRACE)

    def _take(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        try:
            for line in self._process.stderr:
                if heard := self._hear(line):
                    self._said.append(heard)
        except BaseException as fault:  # of whoever hears, such as a full disk: raised where the reply is waited for
            self._fault = fault
            self._kill()

    def _kill(self) -> None:
        """Ends it with all that it has started, unless it has ended: its number may be another's by now."""
        if self._process.poll() is not None:
            return
        if os.name == "posix":
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()


def ask_once(child: Child, do: str, **what: Any) -> Record:
    """The reply of a child that is asked nothing else, as it came.

    Raises:
        TrimlineError: the child has died.
    """
    with child:
        reply = child.reply(do, **what)
        child.finish()
        return reply
