"""The process that computes. It has the runtime to itself and nothing else, so that a lack of memory ends it and not the server.

It does not speak the protocol of ``pipeline.common.children``: there one request has one reply, and here many answers come
token by token while further commands arrive; and it ends in order, with what runs, where other children are killed.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deploy.serve.compute.continuation import Continuation, Runtime
from deploy.serve.protocol.chances import Chance, Distribution
from pipeline.common.errors import TrimlineError


@dataclass(frozen=True)
class Start:
    """Begin with a sequence now; ``logprobs``: how many of the likeliest tokens to name beside each one, None: no probabilities."""

    number: int
    prompt: list[int]
    options: Mapping[str, Any]
    logprobs: int | None = None


@dataclass(frozen=True)
class Cancel:
    """End a sequence, where it still runs."""

    number: int


@dataclass(frozen=True)
class Ping:
    """Say that you live."""


@dataclass(frozen=True)
class Stop:
    """Finish what runs, then end."""


@dataclass(frozen=True)
class Ready:
    """The model is open.

    Attributes:
        cache_bytes: of the cache, per token of a text.
    """

    cache_bytes: int


@dataclass(frozen=True)
class Pong:
    """Nothing hangs: no step, and not the process."""


@dataclass(frozen=True)
class Refused:
    """The model cannot be opened."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Token:
    """The next token of a sequence; ``last``: there will be no more; ``chance``: how likely it was, where that was asked for."""

    number: int
    token: int
    last: bool
    chance: Chance | None = None


@dataclass(frozen=True)
class Broken:
    """The runtime gave up on a sequence."""

    number: int
    message: str


def work(connection: Connection, folder: Path, threads: int) -> None:
    """Entry point of the process: opens the model and obeys until told to stop, or until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a service manager send them to both processes
        signal.signal(number, signal.SIG_IGN)
    try:
        try:
            runtime = Runtime(folder, threads)
        except TrimlineError as error:
            connection.send(Refused(error.problem, error.remedy))
            return
        connection.send(Ready(runtime.cache_bytes))
        _Loop(connection, runtime).run()
    except (EOFError, OSError):  # the other end of the pipe is closed
        return


class _Loop:
    """Gives every sequence a token in turn, and listens in between."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self._connection, self._runtime = connection, runtime
        self._starting: dict[int, Start] = {}
        self._running: dict[int, Continuation] = {}
        self._scored: dict[int, int] = {}  # sequences whose tokens come with probabilities: how many of the likeliest
        self._stopping = False

    def run(self) -> None:
        while True:
            self._listen()
            if self._idle:
                return
            for number in (*self._running, *self._starting):
                self._step(number)

    @property
    def _idle(self) -> bool:
        return not (self._running or self._starting)

    def _listen(self) -> None:
        """Obeys what has arrived; waits where there is nothing to do and more may come."""
        while not (self._idle and self._stopping) and self._connection.poll(None if self._idle else 0):
            match self._connection.recv():
                case Start() as start:
                    self._starting[start.number] = start
                case Cancel(number):
                    self._forget(number)
                case Ping():
                    self._connection.send(Pong())
                case Stop():
                    self._stopping = True

    def _step(self, number: int) -> None:
        try:
            if start := self._starting.pop(number, None):
                self._running[number] = self._runtime.begin(start.prompt, start.options)
                self._scored |= {} if start.logprobs is None else {number: start.logprobs}
            chosen = self._running[number].step()
        except Exception as error:  # of whatever kind: one sequence must not take the others with it
            self._forget(number)
            self._connection.send(Broken(number, " ".join(str(error).split())))
            return
        if chosen is None:
            return
        token, last = chosen
        chance = Distribution(self._running[number].logits).chance(token, self._scored[number]) if number in self._scored else None
        if last:
            self._forget(number)
        self._connection.send(Token(number, token, last, chance))

    def _forget(self, number: int) -> None:
        self._starting.pop(number, None)
        self._running.pop(number, None)
        self._scored.pop(number, None)
