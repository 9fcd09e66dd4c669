"""One request between the server's event loop and the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deploy.serve.answering import Done, Event, Failed, Job, Piece
from deploy.serve.answers import END, Answer, Finished, as_event, usage, with_usage
from deploy.serve.engine import Engine, QueueFull, Stopping
from deploy.serve.errors import ApiError
from deploy.serve.protocol.logprobs import Scored
from deploy.serve.schemas import StreamOptions

RETRY_AFTER = "1"  # seconds; what waits is not known to take longer


@dataclass(frozen=True)
class AnswersWanted:
    """What the engine shall do for one request.

    Attributes:
        prompt: token ids.
        choices: search options of the runtime, of each answer.
        stops: texts that end an answer.
        stop_tokens: ids of special tokens that do.
        logprobs: likeliest tokens to name beside each one; None: no probabilities.
        arrived: ``time.monotonic()`` when the request came.
    """

    prompt: list[int]
    choices: Sequence[Mapping[str, object]]
    stops: tuple[str, ...]
    stop_tokens: frozenset[int]
    logprobs: int | None
    arrived: float


class Listener:
    """Submits a job per answer and hears of their events on the event loop.

    Raises:
        ApiError: the queue is full, or the engine takes no more.
    """

    def __init__(self, engine: Engine, wish: AnswersWanted) -> None:
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self.prompt, self.answers = len(wish.prompt), len(wish.choices)
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._jobs = {index: self._job(index, wish) for index in range(len(wish.choices))}  # those whose answers have not ended
        try:
            engine.submit(*self._jobs.values())
        except QueueFull:
            busy = "Too many requests wait already; try again in a moment."
            raise ApiError(429, busy, "queue_full", headers={"Retry-After": RETRY_AFTER}) from None
        except Stopping:
            raise ApiError(503, "The server takes no more requests.", "not_ready") from None

    def _job(self, index: int, wish: AnswersWanted) -> Job:
        def hear(event: Event) -> None:
            with suppress(RuntimeError):  # a loop that was closed under a forced exit
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return Job(wish.prompt, wish.choices[index], wish.stops, hear, wish.arrived, wish.logprobs, wish.stop_tokens)

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Everything up to the end of the last answer, with the answer's index; ends with the first failure."""
        while self._jobs:
            index, event = await self._events.get()
            if not isinstance(event, Piece):
                self._jobs.pop(index, None)
            if isinstance(event, Failed):
                self.close()
            yield index, event

    def close(self) -> None:
        """Ends the jobs whose answers have not."""
        while self._jobs:
            self._engine.cancel(self._jobs.popitem()[1])

    async def collect(self) -> list[Finished]:
        """The whole answers, in order.

        Raises:
            ApiError: the runtime failed.
        """
        pieces: list[list[Piece]] = [[] for _ in self._jobs]
        ends: dict[int, Done] = {}
        async for index, event in self.events():
            match event:
                case Piece():
                    pieces[index].append(event)
                case Done():
                    ends[index] = event
                case Failed(message):
                    raise failure(message)
        return [_joined(parts, ends[index]) for index, parts in enumerate(pieces)]


def _joined(pieces: Sequence[Piece], done: Done) -> Finished:
    scored: tuple[Scored, ...] = tuple(one for piece in pieces for one in piece.scored)
    return Finished("".join(piece.text for piece in pieces), scored, done)


def failure(message: str) -> ApiError:
    """What a client hears of a failure in the runtime."""
    return ApiError(500, f"The runtime failed on this request: {message[:300]}", "runtime_error")


async def unless_gone(request: Request, listener: Listener) -> list[Finished] | None:
    """The whole answers; None where the client goes away first, and the jobs end with it."""
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
    """Server-sent events of one request, whose jobs end with the connection, also before the first event."""

    media_type = "text/event-stream"

    def __init__(self, listener: Listener, answer: Answer, told: StreamOptions) -> None:
        super().__init__(_stream(listener, answer, told), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._listener.close()


async def _stream(listener: Listener, answer: Answer, told: StreamOptions) -> AsyncIterator[bytes]:
    tokens = dict.fromkeys(range(listener.answers), 0)  # generated, per answer

    def event(document: BaseModel) -> bytes:
        return as_event(with_usage(document, usage(listener.prompt, tokens.values())) if told.continuous_usage_stats else document)

    for index in tokens:
        for document in answer.opening(index):
            yield event(document)
    async for index, heard in listener.events():
        match heard:
            case Piece():
                tokens[index] = heard.tokens
                yield event(answer.piece(index, heard))
            case Done():
                tokens[index] = heard.completion_tokens
                yield event(answer.closing(index, heard))
            case Failed(message):
                yield _error_event(failure(message))
                break
    else:
        if told.include_usage:
            yield as_event(with_usage(answer.ending(), usage(listener.prompt, tokens.values())))
    yield END


def _error_event(error: ApiError) -> bytes:
    return format_sse_event(data_str=json.dumps(error.body()))
