"""From the tokens of one request to the events that its client hears of."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.pieces import Detokeniser
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.protocol.chances import Chance
from deploy.serve.protocol.logprobs import Scored
from deploy.serve.text import StopFilter

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """Text to send, and the tokens that it is made of, where probabilities are asked for; not both empty.

    ``tokens``: how many were generated so far.
    """

    text: str
    scored: tuple[Scored, ...] = ()
    tokens: int = 0


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
        logprobs: likeliest tokens to name beside each one; None: no probabilities.
        stop_tokens: ids of special tokens that end the answer.
    """

    prompt: list[int]
    options: Mapping[str, Any]
    stops: tuple[str, ...]
    emit: Callable[[Event], None]
    arrived: float = field(default_factory=time.monotonic)
    logprobs: int | None = None
    stop_tokens: frozenset[int] = frozenset()


class _Scores:
    """Holds probabilities back until the text of their tokens is sent.

    A token counts where some of its text is sent, or where nothing was cut off. One of half a character has no text yet: it
    goes with what completes it.
    """

    def __init__(self) -> None:
        self._held: deque[Scored] = deque()
        self._written = self._sent = 0

    def push(self, chance: Chance | None, text: str) -> None:
        """Takes a token and what it made whole."""
        if chance is not None:
            self._held.append(Scored(chance, self._written))
        self._written += len(text)

    def pop(self, sent: str, everything: bool = False) -> tuple[Scored, ...]:
        """The tokens that go with what is sent now."""
        self._sent += len(sent)
        found = []
        while self._held and (everything or self._held[0].offset < self._sent):
            found.append(self._held.popleft())
        return tuple(found)


class Answering:
    """A request that runs: text, stop strings, counts and times."""

    def __init__(self, job: Job, model: ServedModel, metrics: Metrics) -> None:
        self.job, self._model, self._metrics = job, model, metrics
        self._text = Detokeniser(model.fast, job.prompt)
        self._stops = StopFilter(job.stops)
        self._scores = _Scores()
        self._tokens = 0
        self._first_token = 0.0
        self._silent = True

    def token(self, token: int, last: bool, chance: Chance | None = None) -> bool:
        """Takes the next token; True at the end of the answer."""
        self._count()
        if token in self._model.ends or token in self.job.stop_tokens:
            return self._finish("stop")
        text = self._text.push(token)
        self._scores.push(chance, text)
        self._send(self._stops.push(text))
        if self._stops.stopped:
            return self._finish("stop")
        return self._finish("length") if last else False

    def _count(self) -> None:
        self._tokens += 1
        self._metrics.completion_tokens.inc()
        if self._tokens == 1:
            self._first_token = time.monotonic()
            self._metrics.prompt_tokens.inc(len(self.job.prompt))

    def _send(self, text: str, last: bool = False) -> None:
        scored = self._scores.pop(text, everything=last and not self._stops.stopped)
        if not text and not scored:
            return
        if self._silent:
            self._silent = False
            self._metrics.ttft.observe(time.monotonic() - self.job.arrived)
        self.job.emit(Piece(text, scored, self._tokens))

    def _finish(self, reason: Reason) -> bool:
        self._send(self._stops.push(self._text.flush()))
        # The last half of a character may have completed a stop string.
        reason = "stop" if self._stops.stopped else reason
        self._send(self._stops.flush(), last=True)
        if self._tokens > 1:
            self._metrics.tpot.observe((time.monotonic() - self._first_token) / (self._tokens - 1))
        self.job.emit(Done(reason, len(self.job.prompt), self._tokens))
        return True
