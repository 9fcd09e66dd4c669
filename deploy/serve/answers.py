"""Answers, made with the classes that OpenAI's own client reads them by."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from fastapi.sse import format_sse_event
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from deploy.serve.answering import Done

END = format_sse_event(data_str="[DONE]")


def usage(done: Done) -> CompletionUsage:
    """Token counts."""
    both = done.prompt_tokens + done.completion_tokens
    return CompletionUsage(prompt_tokens=done.prompt_tokens, completion_tokens=done.completion_tokens, total_tokens=both)


class Answer(Protocol):
    """How one kind of request is answered."""

    def whole(self, text: str, done: Done) -> BaseModel:
        """The answer in one document."""

    def opening(self) -> Iterator[BaseModel]:
        """What a stream begins with."""

    def piece(self, text: str) -> BaseModel:
        """Part of a stream."""

    def closing(self, done: Done, with_usage: bool) -> Iterator[BaseModel]:
        """What a stream ends with."""


class _Kind:
    def __init__(self, model: str, prefix: str) -> None:
        self._common: dict[str, Any] = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


class CompletionAnswer(_Kind):
    """Of ``/v1/completions``."""

    def __init__(self, model: str) -> None:
        super().__init__(model, "cmpl")

    def whole(self, text: str, done: Done) -> BaseModel:
        choice = CompletionChoice(index=0, text=text, finish_reason=done.reason)
        return Completion(**self._common, object="text_completion", choices=[choice], usage=usage(done))

    def opening(self) -> Iterator[BaseModel]:
        return iter(())

    def piece(self, text: str) -> BaseModel:
        return self._chunk(text, None)

    def closing(self, done: Done, with_usage: bool) -> Iterator[BaseModel]:
        yield self._chunk("", done.reason)
        if with_usage:
            yield Completion(**self._common, object="text_completion", choices=[], usage=usage(done))

    def _chunk(self, text: str, reason: Any) -> BaseModel:
        # The class knows only whole answers, whose reason is never null; in a stream it is, until the end.
        choice = CompletionChoice.model_construct(index=0, text=text, logprobs=None, finish_reason=reason)
        return Completion.model_construct(**self._common, object="text_completion", choices=[choice])


class ChatAnswer(_Kind):
    """Of ``/v1/chat/completions``."""

    def __init__(self, model: str) -> None:
        super().__init__(model, "chatcmpl")

    def whole(self, text: str, done: Done) -> BaseModel:
        message = ChatCompletionMessage(role="assistant", content=text)
        choice = Choice(index=0, message=message, finish_reason=done.reason)
        return ChatCompletion(**self._common, object="chat.completion", choices=[choice], usage=usage(done))

    def opening(self) -> Iterator[BaseModel]:
        yield self._chunk([ChunkChoice(index=0, delta=ChoiceDelta(role="assistant", content=""))])

    def piece(self, text: str) -> BaseModel:
        return self._chunk([ChunkChoice(index=0, delta=ChoiceDelta(content=text))])

    def closing(self, done: Done, with_usage: bool) -> Iterator[BaseModel]:
        yield self._chunk([ChunkChoice(index=0, delta=ChoiceDelta(), finish_reason=done.reason)])
        if with_usage:
            yield self._chunk([], usage=usage(done))

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> BaseModel:
        return ChatCompletionChunk(**self._common, object="chat.completion.chunk", choices=choices, **more)


def as_json(document: BaseModel) -> str:
    """One line; keys that were never set stay out, but a reason that is null does not."""
    return document.model_dump_json(exclude_unset=True, warnings=False)


def as_event(document: BaseModel) -> bytes:
    """An event of a stream."""
    return format_sse_event(data_str=as_json(document))
