"""One streamed request to an OpenAI-compatible endpoint, with the time of every piece of text."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import httpx2

from pipeline.common.errors import TrimlineError


@dataclass(frozen=True)
class Endpoint:
    """What is asked.

    Attributes:
        model: its name there.
        chat: ``/chat/completions`` instead of ``/completions``.
        tokens: most output tokens.
        ignore_eos: sends ``ignore_eos``, which many servers know and OpenAI's own does not.
    """

    model: str
    chat: bool
    tokens: int
    ignore_eos: bool
    ends_with_done = True

    @property
    def path(self) -> str:
        return "chat/completions" if self.chat else "completions"

    def body(self, prompt: str) -> dict[str, Any]:
        """The request: greedy, streamed, with token counts."""
        asked: dict[str, Any] = {"model": self.model, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        asked |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        asked |= {"max_completion_tokens" if self.chat else "max_tokens": self.tokens}
        return asked | ({"ignore_eos": True} if self.ignore_eos else {})

    def reading(self) -> Reading:
        """What takes the stream's events."""
        return OpenAIReading()


@dataclass(frozen=True)
class RequestSample:
    """What one request measured.

    Attributes:
        sent: seconds from the beginning of the run.
        pieces: seconds from ``sent`` to each piece of text that was not empty. Servers may put several tokens into one
            piece, and hold a token back until its character is whole.
        prompt_tokens, output_tokens: as the server counts; a server may not tell the first.
    """

    sent: float
    pieces: tuple[float, ...]
    prompt_tokens: int | None
    output_tokens: int

    @property
    def ttft(self) -> float:
        """Request sent to first text, seconds: connection, queue and prompt included."""
        return self.pieces[0]

    @property
    def latency(self) -> float:
        """Request sent to last text, seconds."""
        return self.pieces[-1]

    @property
    def tpot(self) -> float | None:
        """(latency − TTFT) / (output tokens − 1), seconds; None below two tokens."""
        return None if self.output_tokens < 2 else (self.latency - self.ttft) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Between pieces, seconds."""
        return [later - earlier for earlier, later in pairwise(self.pieces)]

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


class RequestFailed(Exception):
    """The endpoint answered with an error, or not with a stream that has text and token counts."""


class Reading(Protocol):
    """Takes the events of one stream."""

    def take(self, event: dict[str, Any]) -> bool:
        """Whether the event brings text."""

    def counts(self) -> tuple[int | None, int]:
        """Prompt and output tokens, after the last event."""


class RequestForm(Protocol):
    """What a request asks of which endpoint: ``ends_with_done`` says whether a stream's last event is [DONE]."""

    ends_with_done: bool

    @property
    def path(self) -> str: ...

    def body(self, prompt: str) -> dict[str, Any]: ...

    def reading(self) -> Reading: ...


@dataclass
class OpenAIReading:
    """The token counts, which the stream's end brings."""

    usage: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> bool:
        """Whether the event brings text."""
        self.usage = event.get("usage") or self.usage
        return bool(_text(event))

    def counts(self) -> tuple[int | None, int]:
        """Prompt and output tokens.

        Raises:
            RequestFailed: there were none.
        """
        if self.usage is None:
            raise RequestFailed("the stream holds no usage")
        return int(self.usage["prompt_tokens"]), int(self.usage["completion_tokens"])


async def timed(client: httpx2.AsyncClient, endpoint: RequestForm, prompt: str, began: float) -> RequestSample:
    """Sends one request and reads its stream.

    Args:
        client: whose base URL ends with /v1/, or without a path for Triton.
        endpoint: what to ask.
        prompt: the text.
        began: ``time.perf_counter()`` at the beginning of the run.

    Raises:
        RequestFailed: no whole stream came.
    """
    sent, pieces, reading = time.perf_counter(), [], endpoint.reading()
    try:
        async with client.stream("POST", endpoint.path, json=endpoint.body(prompt)) as answer:
            if answer.status_code != httpx2.codes.OK:
                raise RequestFailed(f"{answer.status_code}: {(await answer.aread()).decode(errors='replace')[:300]}")
            async for event in _events(answer, endpoint.ends_with_done):
                if reading.take(event):
                    pieces.append(time.perf_counter() - sent)
        counts = reading.counts()
    except (httpx2.HTTPError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise RequestFailed(f"{type(error).__name__}: {error}") from error
    if not pieces:
        raise RequestFailed("the stream holds no text")
    return RequestSample(sent - began, tuple(pieces), *counts)


async def _events(answer: httpx2.Response, ends_with_done: bool) -> AsyncIterator[dict[str, Any]]:
    """The JSON documents of a stream.

    Raises:
        RequestFailed: it ends early, or with an error.
    """
    async for line in answer.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise RequestFailed(str(event["error"])[:300])
        yield event
    if ends_with_done:
        raise RequestFailed("the stream ended before [DONE]")


def _text(event: dict[str, Any]) -> str:
    """Text of a piece; empty for roles, reasons and counts."""
    for choice in event.get("choices") or ():
        return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return ""


async def first_model(client: httpx2.AsyncClient) -> str:
    """The first model that the endpoint lists.

    Raises:
        TrimlineError: it lists none.
    """
    try:
        answer = await client.get("models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise TrimlineError(
            f"{client.base_url} lists no models ({error}).", "Check the URL, which ends with /v1, or name --model."
        ) from error
