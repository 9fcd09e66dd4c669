"""Answers, made with the classes that OpenAI's own client reads them by."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi.sse import format_sse_event
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel

from deploy.serve.answering import Done, Piece
from deploy.serve.protocol.logprobs import Scored, TokenTexts, chat_logprobs, completion_logprobs

END = format_sse_event(data_str="[DONE]")


@dataclass(frozen=True)
class Finished:
    """A whole answer, with its tokens where probabilities were asked for."""

    text: str
    scored: tuple[Scored, ...]
    done: Done


def usage(prompt: int, answers: Iterable[int]) -> CompletionUsage:
    """Token counts; the prompt counts once, however many answers it has."""
    generated = sum(answers)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


class Answer(Protocol):
    """How one kind of request is answered."""

    def whole(self, choices: Sequence[Finished]) -> BaseModel:
        """The answers in one document."""

    def opening(self, index: int) -> Iterator[BaseModel]:
        """What an answer's stream begins with."""

    def piece(self, index: int, piece: Piece) -> BaseModel:
        """Part of an answer's stream."""

    def closing(self, index: int, done: Done) -> BaseModel:
        """What an answer's stream ends with."""

    def ending(self) -> BaseModel:
        """What follows the last answer, for the token counts."""


class _Kind:
    """What both kinds share.

    Args:
        model: its name.
        texts: what single tokens are; None: no probabilities are asked for.
        prefix: of the answer's id.
    """

    def __init__(self, model: str, texts: TokenTexts | None, prefix: str) -> None:
        self._common: dict[str, Any] = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._texts = texts

    def _logprobs(self, form: Callable[[tuple[Scored, ...], TokenTexts], Any], scored: tuple[Scored, ...]) -> Any:
        return None if self._texts is None else form(scored, self._texts)


class CompletionAnswer(_Kind):
    """Of ``/v1/completions``."""

    def __init__(self, model: str, texts: TokenTexts | None = None) -> None:
        super().__init__(model, texts, "cmpl")

    def whole(self, choices: Sequence[Finished]) -> BaseModel:
        told = [
            CompletionChoice(index=index, text=one.text, finish_reason=one.done.reason, logprobs=self._scores(one.scored))
            for index, one in enumerate(choices)
        ]
        return Completion(**self._common, object="text_completion", choices=told, usage=_used(choices))

    def opening(self, index: int) -> Iterator[BaseModel]:
        return iter(())

    def piece(self, index: int, piece: Piece) -> BaseModel:
        return self._chunk(index, piece.text, None, self._scores(piece.scored))

    def closing(self, index: int, done: Done) -> BaseModel:
        return self._chunk(index, "", done.reason, None)

    def ending(self) -> BaseModel:
        return Completion(**self._common, object="text_completion", choices=[])

    def _scores(self, scored: tuple[Scored, ...]) -> Any:
        return self._logprobs(completion_logprobs, scored)

    def _chunk(self, index: int, text: str, reason: Any, logprobs: Any) -> BaseModel:
        # The class knows only whole answers, whose reason is never null; in a stream it is, until the end.
        choice = CompletionChoice.model_construct(index=index, text=text, logprobs=logprobs, finish_reason=reason)
        return Completion.model_construct(**self._common, object="text_completion", choices=[choice])


class ChatAnswer(_Kind):
    """Of ``/v1/chat/completions``."""

    def __init__(self, model: str, texts: TokenTexts | None = None) -> None:
        super().__init__(model, texts, "chatcmpl")

    def whole(self, choices: Sequence[Finished]) -> BaseModel:
        told = [
            Choice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=one.text),
                finish_reason=one.done.reason,
                logprobs=self._scores(one.scored),
            )
            for index, one in enumerate(choices)
        ]
        return ChatCompletion(**self._common, object="chat.completion", choices=told, usage=_used(choices))

    def opening(self, index: int) -> Iterator[BaseModel]:
        yield self._chunk([ChunkChoice(index=index, delta=ChoiceDelta(role="assistant", content=""))])

    def piece(self, index: int, piece: Piece) -> BaseModel:
        told = ChunkChoice(index=index, delta=ChoiceDelta(content=piece.text), logprobs=self._scores(piece.scored))
        return self._chunk([told])

    def closing(self, index: int, done: Done) -> BaseModel:
        return self._chunk([ChunkChoice(index=index, delta=ChoiceDelta(), finish_reason=done.reason)])

    def ending(self) -> BaseModel:
        return self._chunk([])

    def _scores(self, scored: tuple[Scored, ...]) -> Any:
        logprobs = self._logprobs(chat_logprobs, scored)
        return None if logprobs is None else logprobs.model_dump()  # a stream's class is another one of the same form

    def _chunk(self, choices: list[ChunkChoice]) -> BaseModel:
        return ChatCompletionChunk(**self._common, object="chat.completion.chunk", choices=choices)


def with_usage(document: BaseModel, counts: CompletionUsage) -> BaseModel:
    """A stream's document with token counts."""
    return document.model_copy(update={"usage": counts})


def as_json(document: BaseModel) -> str:
    """One line; keys that were never set stay out, but a reason that is null does not."""
    return document.model_dump_json(exclude_unset=True, warnings=False)


def as_event(document: BaseModel) -> bytes:
    """An event of a stream."""
    return format_sse_event(data_str=as_json(document))


def _used(choices: Sequence[Finished]) -> CompletionUsage:
    return usage(choices[0].done.prompt_tokens, (one.done.completion_tokens for one in choices))
