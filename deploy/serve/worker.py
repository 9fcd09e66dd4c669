"""The process that computes. It has the runtime to itself and nothing else.

onnxruntime-genai 0.18 holds Python's lock while it computes: in the server's own process, reading a long prompt would
stop every answer, new requests and health checks for as long as it takes.

It does not speak the protocol of ``pipeline.common.children``: there one request has one reply, and here many answers come
token by token while further commands arrive; and it ends in order, with what runs, where other children are killed.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

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
class Stop:
    """Finish what runs, then end."""


@dataclass(frozen=True)
class Ready:
    """The model is open."""


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


class Runtime:
    """A model in onnxruntime-genai.

    Args:
        folder: with genai_config.json.
        threads: of ONNX Runtime inside an operator; the library's own choice leaves cores idle.

    Raises:
        TrimlineError: it cannot be opened.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        try:
            config = genai.Config(str(folder))
            session = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": session}}))
            self._model = genai.Model(config)
        except Exception as error:  # its exceptions are plain RuntimeErrors
            raise TrimlineError(f"onnxruntime-genai cannot open {folder}: {str(error).strip()}.", "Export it again.") from error

    def generator(self, prompt: Sequence[int], options: Mapping[str, Any]) -> Any:
        """A generator that has read the prompt."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(**options)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.asarray(prompt, np.int32))
        return generator


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
        connection.send(Ready())
        _Loop(connection, runtime).run()
    except (EOFError, OSError):  # the other end of the pipe is closed
        return


class _Loop:
    """Gives every sequence a token in turn, and listens in between."""

    def __init__(self, connection: Connection, runtime: Runtime) -> None:
        self._connection, self._runtime = connection, runtime
        self._starting: dict[int, Start] = {}
        self._running: dict[int, Any] = {}
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
                case Stop():
                    self._stopping = True

    def _step(self, number: int) -> None:
        try:
            if start := self._starting.pop(number, None):
                self._running[number] = self._runtime.generator(start.prompt, dict(start.options))
                self._scored |= {} if start.logprobs is None else {number: start.logprobs}
            generator = self._running[number]
            # Before the token is drawn: drawing changes the logits where they lie.
            said = Distribution(generator.get_logits()) if number in self._scored else None
            generator.generate_next_token()
            token, last = int(generator.get_next_tokens()[0]), bool(generator.is_done())
            chance = said.chance(token, self._scored[number]) if said else None
        except Exception as error:  # plain RuntimeErrors; one sequence must not take the others with it
            self._forget(number)
            self._connection.send(Broken(number, " ".join(str(error).split())))
            return
        if last:
            self._forget(number)
        self._connection.send(Token(number, token, last, chance))

    def _forget(self, number: int) -> None:
        self._starting.pop(number, None)
        self._running.pop(number, None)
        self._scored.pop(number, None)
