"""One event stream: progress bars, the log and the run's record all subscribe to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["stage_started", "stage_finished", "stage_skipped", "progress", "note", "gate"]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: what sort of event.
        stage: the stage it belongs to, such as ``prune`` or ``evaluate (dense)``.
        text: what a person reads.
        done, total: how far a ``progress`` event is, in units of its text.
        data: numbers for the log, JSON-compatible.
    """

    kind: Kind
    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    data: dict[str, Any] = field(default_factory=dict)


class Events:
    """Hands every event to every subscriber, in order. With no subscriber it is silent."""

    def __init__(self, *subscribers: Callable[[Event], None]) -> None:
        self._subscribers = list(subscribers)
        self.stage = ""

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        self._subscribers.append(subscriber)

    def emit(self, kind: Kind, text: str = "", *, done: int = 0, total: int = 0, **data: Any) -> None:
        event = Event(kind, self.stage, text, done, total, data)
        for subscriber in self._subscribers:
            subscriber(event)

    def note(self, text: str, **data: Any) -> None:
        self.emit("note", text, **data)

    def gate(self, text: str, **data: Any) -> None:
        self.emit("gate", text, **data)

    @contextmanager
    def of_stage(self, name: str) -> Iterator[None]:
        """What is emitted meanwhile belongs to this stage; what comes later, of the same caller, does not."""
        before, self.stage = self.stage, name
        try:
            yield
        finally:
            self.stage = before

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields ``advance(n)``; announces 0 at the start so that a bar appears before the first unit is done."""
        done = 0
        self.emit("progress", text, done=0, total=total)

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            self.emit("progress", text, done=done, total=total)

        yield advance
