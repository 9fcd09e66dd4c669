"""Runs requests through one model: a bounded queue, one thread, a few sequences that take turns token by token.

onnxruntime-genai 0.18 has an engine of its own (``Engine``, ``Request``). It is not used: it batches statically, so
that a late request waits until every sequence of the running batch has ended, and on graphs of the portable lowering
rows of unequal length get wrong tokens or an error. Here each request has its own ``Generator``; a new one joins after
the token that is being computed. The price: sequences that run together share the processor, and gain nothing by it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.text import Detokeniser, StopFilter

log = logging.getLogger("uvicorn.error")


class QueueFull(Exception):
    """As many requests wait as may."""


class Stopping(Exception):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Piece:
    """Text to send, not empty."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, and how many tokens it took; an end-of-text token counts."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The runtime gave up on this request."""

    message: str


Event = Piece | Done | Failed


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        prompt: token ids, at least one.
        options: search options of the runtime.
        stops: texts that end the answer.
        emit: called by the engine's thread with each event; must not block.
        arrived: ``time.monotonic()`` when the request came.
    """

    prompt: list[int]
    options: Mapping[str, Any]
    stops: tuple[str, ...]
    emit: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Owner of the model.

    Args:
        model: opened; nothing else may use its ``generator``.
        parallel: sequences that take turns.
        queue: requests that may wait besides.
        metrics: told about tokens and times.
    """

    def __init__(self, model: ServedModel, parallel: int, queue: int, metrics: Metrics) -> None:
        self._model, self._parallel, self._most, self._metrics = model, parallel, queue, metrics
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[_Sequence] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.watch(lambda: len(self._waiting), lambda: len(self._running))

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken and worked on."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Puts a request at the end of the queue.

        Raises:
            QueueFull: ``queue`` requests wait already.
            Stopping: the engine was told to stop.
        """
        with self._changed:
            if self._closing:
                raise Stopping
            if len(self._waiting) >= self._most:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a request that nobody waits for; at once where it waits, after the current token where it runs."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.cancelled.inc()

    def stop(self) -> None:
        """Takes no more requests, finishes those that it has, and returns when the last one has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._admit()
            if not self._running:
                return
            self._running = [sequence for sequence in self._running if self._advance(sequence)]

    def _admit(self) -> None:
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait()
            room = min(self._parallel - len(self._running), len(self._waiting))
            # Built while nobody can see the job in neither place: it is either waiting or running.
            self._running = [*self._running, *(_Sequence(self._waiting.popleft(), self._model, self._metrics) for _ in range(room))]

    def _advance(self, sequence: _Sequence) -> bool:
        """Whether the sequence goes on after one more token."""
        try:
            return sequence.step()
        except Exception as error:  # its exceptions are plain RuntimeErrors; one request must not take the others with it
            log.exception("a request failed in the runtime")
            sequence.job.emit(Failed(" ".join(str(error).split())))
            return False


class _Sequence:
    """A request that runs."""

    def __init__(self, job: Job, model: ServedModel, metrics: Metrics) -> None:
        self.job, self._model, self._metrics = job, model, metrics
        self._generator: Any = None
        self._text = Detokeniser(model.fast, job.prompt)
        self._stops = StopFilter(job.stops)
        self._tokens = 0
        self._first_token = 0.0
        self._silent = True

    def step(self) -> bool:
        """Computes a token, the first time the whole prompt; False at the end."""
        if self.job.cancelled.is_set():
            self._metrics.cancelled.inc()
            return False
        if self._generator is None:
            self._generator = self._model.generator(self.job.prompt, dict(self.job.options))
            self._metrics.prompt_tokens.inc(len(self.job.prompt))
        self._generator.generate_next_token()
        token = int(self._generator.get_next_tokens()[0])
        self._count()
        if token in self._model.ends:
            return self._finish("stop")
        self._send(self._stops.push(self._text.push(token)))
        if self._stops.stopped:
            return self._finish("stop")
        return self._finish("length") if self._generator.is_done() else True

    def _count(self) -> None:
        self._tokens += 1
        self._metrics.completion_tokens.inc()
        if self._tokens == 1:
            self._first_token = time.monotonic()

    def _send(self, text: str) -> None:
        if not text:
            return
        if self._silent:
            self._silent = False
            self._metrics.ttft.observe(time.monotonic() - self.job.arrived)
        self.job.emit(Piece(text))

    def _finish(self, reason: Literal["stop", "length"]) -> bool:
        self._send(self._stops.push(self._text.flush()))
        # The last half of a character may have completed a stop string.
        reason = "stop" if self._stops.stopped else reason
        self._send(self._stops.flush())
        if self._tokens > 1:
            self._metrics.tpot.observe((time.monotonic() - self._first_token) / (self._tokens - 1))
        self.job.emit(Done(reason, len(self.job.prompt), self._tokens))
        return False
