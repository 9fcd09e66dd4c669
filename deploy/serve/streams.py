"""One request between the server's event loop and the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deploy.serve.answering import Done, Event, Failed, Job, Piece
from deploy.serve.answers import END, Answer, as_event
from deploy.serve.engine import Engine, QueueFull, Stopping
from deploy.serve.errors import ApiError

RETRY_AFTER = "1"  # seconds; what waits is not known to take longer


class Listener:
    """Submits a job and hears of its events on the event loop."""

    def __init__(self, engine: Engine, prompt: list[int], options: dict[str, object], stops: tuple[str, ...], arrived: float) -> None:
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._job = Job(prompt, options, stops, self._hear, arrived)
        self._over = False
        try:
            engine.submit(self._job)
        except QueueFull:
            busy = "Too many requests wait already; try again in a moment."
            raise ApiError(429, busy, "queue_full", headers={"Retry-After": RETRY_AFTER}) from None
        except Stopping:
            raise ApiError(503, "The server takes no more requests.", "not_ready") from None

    def _hear(self, event: Event) -> None:
        with suppress(RuntimeError):  # a loop that was closed under a forced exit
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Event]:
        """Everything up to the end of the answer."""
        while not self._over:
            event = await self._events.get()
            self._over = not isinstance(event, Piece)
            yield event

    def close(self) -> None:
        """Ends the job where its answer has not."""
        if not self._over:
            self._engine.cancel(self._job)

    async def collect(self) -> tuple[str, Done]:
        """The whole text.

        Raises:
            ApiError: the runtime failed.
        """
        pieces: list[str] = []
        async for event in self.events():
            match event:
                case Piece(text):
                    pieces.append(text)
                case Done():
                    return "".join(pieces), event
                case Failed(message):
                    raise failure(message)
        raise AssertionError("events end with Done or Failed")


def failure(message: str) -> ApiError:
    """What a client hears of a failure in the runtime."""
    return ApiError(500, f"The runtime failed on this request: {message[:300]}", "runtime_error")


async def unless_gone(request: Request, listener: Listener) -> tuple[str, Done] | None:
    """The whole text; None where the client goes away first, and the job ends with it."""
    work, gone = asyncio.ensure_future(listener.collect()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        work.cancel()
        gone.cancel()
        listener.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events of one job, which ends with the connection, also before the first event."""

    media_type = "text/event-stream"

    def __init__(self, listener: Listener, answer: Answer, with_usage: bool) -> None:
        super().__init__(_stream(listener, answer, with_usage), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listener.close()


async def _stream(listener: Listener, answer: Answer, with_usage: bool) -> AsyncIterator[bytes]:
    for document in answer.opening():
        yield as_event(document)
    async for event in listener.events():
        match event:
            case Piece(text):
                yield as_event(answer.piece(text))
            case Done():
                for document in answer.closing(event, with_usage):
                    yield as_event(document)
            case Failed(message):
                yield _error_event(failure(message))
    yield END


def _error_event(error: ApiError) -> bytes:
    return format_sse_event(data_str=json.dumps(error.body()))
