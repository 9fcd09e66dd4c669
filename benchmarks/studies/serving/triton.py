"""Triton as an endpoint: streamed text over its HTTP ``generate_stream``, which needs no client library.

The model streams ``text_output``, ``token_ids`` and ``finish_reason``, as the streaming model of this project's packages does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.studies.serving.request import RequestFailed
from pipeline.common.errors import TrimlineError


@dataclass(frozen=True)
class TritonEndpoint:
    """What is asked: greedy text of at most so many tokens."""

    model: str
    tokens: int
    ends_with_done = False

    @property
    def path(self) -> str:
        return f"v2/models/{self.model}/generate_stream"

    def body(self, prompt: str) -> dict[str, Any]:
        """The request; greedy by default."""
        return {"text_input": prompt, "max_tokens": self.tokens}

    def reading(self) -> TritonReading:
        """What takes the stream's events."""
        return TritonReading()


@dataclass
class TritonReading:
    """Tokens so far. A tensor of one element comes as a plain value; ids below zero fill rows up."""

    tokens: int = 0
    counted: bool = field(default=False)
    finished: bool = False

    def take(self, event: dict[str, Any]) -> bool:
        """Whether the event brings text."""
        ids = event.get("token_ids")
        if ids is not None:
            self.counted = True
            self.tokens += sum(token >= 0 for token in (ids if isinstance(ids, list) else [ids]))
        self.finished |= bool(event.get("finish_reason"))
        return bool(event.get("text_output"))

    def counts(self) -> tuple[int | None, int]:
        """Prompt tokens, which Triton does not tell, and output tokens.

        Raises:
            RequestFailed: the stream broke off, or has no token ids.
        """
        if not self.counted:
            raise RequestFailed("the stream holds no token_ids")
        if not self.finished:
            raise RequestFailed("the stream ended before its finish_reason")
        return None, self.tokens


async def first_triton_model(client: httpx2.AsyncClient) -> str:
    """The first model that is ready, by the server's repository index; one whose name ends in ``-stream`` before others.

    Raises:
        TrimlineError: there is none.
    """
    try:
        answer = await client.post("v2/repository/index", json={"ready": True})
        answer.raise_for_status()
        names = [str(row["name"]) for row in answer.json()]
        return sorted(names, key=lambda name: not name.endswith("-stream"))[0]
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        raise TrimlineError(
            f"{client.base_url} has no model that is ready ({error}).", "Check the URL, which has no path, or name --model."
        ) from error
