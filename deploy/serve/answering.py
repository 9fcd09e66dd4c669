"""From the tokens of one request to the events that its client hears of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.text import Detokeniser, StopFilter

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """Text to send, not empty."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer, and how many tokens it took; an end-of-text token counts."""

    reason: Reason
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
        emit: called with each event by a thread of the engine; must not block.
        arrived: ``time.monotonic()`` when the request came.
    """

    prompt: list[int]
    options: Mapping[str, Any]
    stops: tuple[str, ...]
    emit: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)


class Answering:
    """A request that runs: text, stop strings, counts and times."""

    def __init__(self, job: Job, model: ServedModel, metrics: Metrics) -> None:
        self.job, self._model, self._metrics = job, model, metrics
        self._text = Detokeniser(model.fast, job.prompt)
        self._stops = StopFilter(job.stops)
        self._tokens = 0
        self._first_token = 0.0
        self._silent = True

    def token(self, token: int, last: bool) -> bool:
        """Takes the next token; True at the end of the answer."""
        self._count()
        if token in self._model.ends:
            return self._finish("stop")
        self._send(self._stops.push(self._text.push(token)))
        if self._stops.stopped:
            return self._finish("stop")
        return self._finish("length") if last else False

    def _count(self) -> None:
        self._tokens += 1
        self._metrics.completion_tokens.inc()
        if self._tokens == 1:
            self._first_token = time.monotonic()
            self._metrics.prompt_tokens.inc(len(self.job.prompt))

    def _send(self, text: str) -> None:
        if not text:
            return
        if self._silent:
            self._silent = False
            self._metrics.ttft.observe(time.monotonic() - self.job.arrived)
        self.job.emit(Piece(text))

    def _finish(self, reason: Reason) -> bool:
        self._send(self._stops.push(self._text.flush()))
        # The last half of a character may have completed a stop string.
        reason = "stop" if self._stops.stopped else reason
        self._send(self._stops.flush())
        if self._tokens > 1:
            self._metrics.tpot.observe((time.monotonic() - self._first_token) / (self._tokens - 1))
        self.job.emit(Done(reason, len(self.job.prompt), self._tokens))
        return True
