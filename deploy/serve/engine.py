"""Requests through one model: a bounded queue, a process that computes, text that comes back.

Each request has a text of its own in that process; a new one joins after the token that is being computed. The price:
texts that grow together share the processor, and gain nothing by it (docs/serving.md says what else was tried).
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from deploy.serve.answering import Answering, Failed, Job
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.worker import Broken, Cancel, Ping, Pong, Ready, Refused, Start, Stop, Token, work
from pipeline.common.errors import TrimlineError

BEAT = 0.5  # seconds between two questions whether the process lives
UNREADY = 5.0  # seconds without an answer after which nobody should send more requests
LEAVE = 2.0  # seconds for the process to end by itself
LOST = "The process that computes was ended, for lack of memory perhaps."


class QueueFull(Exception):
    """As many requests wait as may."""


class Stopping(Exception):
    """The engine takes no more requests."""


class Engine:
    """Owner of the process that has the model.

    Args:
        model: what the tokens mean.
        parallel: sequences that take turns.
        queue: requests that may wait besides.
        metrics: told about tokens and times.
        step_timeout: seconds that one step of the process may take before it counts as lost.

    Attributes:
        cache_bytes: of the cache, per token of a text; known once it has started.
        loss: what to say where the process is lost.
    """

    def __init__(self, model: ServedModel, parallel: int, queue: int, metrics: Metrics, step_timeout: float = 120.0) -> None:
        self._step_timeout, self._heard, self._asked = step_timeout, time.monotonic(), False
        self.cache_bytes = 0
        self._model, self._parallel, self._most, self._metrics = model, parallel, queue, metrics
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Answering] = {}
        self._numbers = 0
        self._closing = self._gone = False
        self._process: Any = None
        self._on_lost: Callable[[], None] | None = None
        self.loss = TrimlineError(LOST, "Start again; a lower --parallel or --context takes less.")
        # Written by a thread, since the pipe is full while a long prompt is read, and the event loop must not wait.
        self._commands: SimpleQueue[Start | Cancel | Ping | Stop | None] = SimpleQueue()
        metrics.watch(lambda: len(self._waiting), lambda: len(self._running))

    def start(self, folder: Path, threads: int, on_lost: Callable[[], None] | None = None) -> None:
        """Opens the model in a process of its own.

        Args:
            folder: an ONNX export.
            threads: of the runtime.
            on_lost: called by a thread of the engine when that process ends unasked or hangs, after every request was told;
                ``loss`` says which.

        Raises:
            TrimlineError: the runtime cannot open it, or the process ends meanwhile.
        """
        self._on_lost = on_lost
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, folder, threads), name="engine", daemon=True)
        process.start()
        self._process = process
        theirs.close()
        try:
            answer = self._connection.recv()
        except EOFError:
            raise TrimlineError(f"The process that opens {folder} was ended.", "Look for a lack of memory.") from None
        if isinstance(answer, Refused):
            raise TrimlineError(answer.problem, answer.remedy)
        assert isinstance(answer, Ready)
        self.cache_bytes, self._heard = answer.cache_bytes, time.monotonic()
        for work_of in (self._write, self._read, self._watch):
            threading.Thread(target=work_of, name=work_of.__name__.strip("_"), daemon=True).start()
        with self._changed:
            self._dispatch()

    @property
    def alive(self) -> bool:
        """Whether requests are taken and worked on, and the process says so itself."""
        hangs = self._silent > min(UNREADY, self._step_timeout / 2)
        return self._process is not None and self._process.is_alive() and not (self._closing or self._gone or hangs)

    @property
    def _silent(self) -> float:
        """Seconds that a question to the process has waited for; it is put between two steps."""
        return time.monotonic() - self._heard if self._asked else 0.0

    def submit(self, *jobs: Job) -> None:
        """Puts the answers of a request at the end of the queue, all or none.

        Raises:
            QueueFull: ``queue`` requests wait already, or would.
            Stopping: the engine was told to stop, or its process is gone.
        """
        with self._changed:
            if self._closing or self._gone:
                raise Stopping
            free = self._parallel - len(self._running) if self._process else 0
            if len(self._waiting) + len(jobs) > self._most + free:
                raise QueueFull
            self._waiting.extend(jobs)
            self._dispatch()

    def cancel(self, job: Job) -> None:
        """Ends a request that nobody waits for; the model goes on with the token that it is computing."""
        with self._changed:
            number = next((number for number, answering in self._running.items() if answering.job is job), None)
            if job in self._waiting:
                self._waiting.remove(job)
            elif number is not None:
                self._end(number)
            else:
                return
            self._metrics.cancelled.inc()

    def stop(self) -> None:
        """Takes no more requests, finishes those that it has, and returns when the last one has ended."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._gone or not (self._running or self._waiting))
        self._commands.put(Stop())
        self._process.join(LEAVE)
        self.kill()

    def abandon(self, why: str) -> None:
        """Ends what runs and what waits, each with this reason."""
        with self._changed:
            self._closing = True
            lost = [*(answering.job for answering in self._running.values()), *self._waiting]
            for number in self._running:
                self._commands.put(Cancel(number))
            self._running.clear()
            self._waiting.clear()
            self._changed.notify_all()
        for job in lost:
            with suppress(Exception):  # a listener that cannot be told
                job.emit(Failed(why))

    def kill(self) -> None:
        """Ends the process without waiting for anything; a process that is stopped ends too."""
        if self._process is not None:
            self._process.kill()

    def _dispatch(self) -> None:
        while self._process and self._waiting and len(self._running) < self._parallel:
            job, self._numbers = self._waiting.popleft(), self._numbers + 1
            try:
                self._running[self._numbers] = Answering(job, self._model, self._metrics)
            except Exception as error:  # of whatever kind: one request must not take the others with it
                _fail(job, error)
                continue
            self._commands.put(Start(self._numbers, job.prompt, job.options, job.logprobs))
        self._changed.notify_all()

    def _end(self, number: int) -> None:
        """Makes room; the process is told, since a stop string or a client that left is none of its business."""
        self._running.pop(number)
        self._commands.put(Cancel(number))
        self._dispatch()

    def _write(self) -> None:
        while command := self._commands.get():
            try:
                self._connection.send(command)
            except OSError:  # the process is gone, which the other thread notices and tells
                return

    def _read(self) -> None:
        while True:
            try:
                event = self._connection.recv()
            except (EOFError, OSError):
                self._lose()
                return
            self._heard, self._asked = time.monotonic(), False
            if isinstance(event, Pong):
                continue
            with self._changed:
                answering = self._running.get(event.number)  # None: it has ended on this side already
                if answering is not None and _is_over(answering, event):
                    self._end(event.number)

    def _watch(self) -> None:
        """Asks whether the process lives. One that is stopped, or in a step without end, is lost as one that has ended is."""
        while not self._gone:
            if not self._asked:
                self._heard, self._asked = time.monotonic(), True
                self._commands.put(Ping())
            time.sleep(BEAT)
            if self._silent > self._step_timeout:
                hung = f"The process that computes has not answered for {self._step_timeout:g} s."
                self.loss = TrimlineError(hung, "Start again; where its steps may take as long, raise --step-timeout.")
                self.kill()
                return

    def _lose(self) -> None:
        """The process has ended: as asked, or killed, and then nobody may wait for it."""
        with self._changed:
            asked = self._closing and not (self._running or self._waiting)
            self._gone = True
        self._commands.put(None)
        self.abandon("the process that computes has ended")
        if self._on_lost and not asked:
            self._on_lost()


def _is_over(answering: Answering, event: Token | Broken) -> bool:
    """Gives an answer what the process says of it; an error ends this answer, since the others need the thread."""
    try:
        match event:
            case Token(_, token, last, chance):
                return answering.token(token, last, chance)
            case Broken(_, message):
                answering.job.emit(Failed(message))
    except Exception as error:
        _fail(answering.job, error)
    return True


def _fail(job: Job, error: Exception) -> None:
    logging.getLogger(__name__).error("A request ended in an error.", exc_info=error)
    with suppress(Exception):  # a listener that cannot be told, which may be the very error
        job.emit(Failed(f"{type(error).__name__}: {error}"))
