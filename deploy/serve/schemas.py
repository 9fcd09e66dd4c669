"""The part of OpenAI's requests that this server answers. What it cannot do is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from deploy.serve.protocol.fields import COMPLETION, MESSAGE, PART, REQUEST, STREAM, Unserved, refused, without_neutral
from deploy.serve.sampling import Sampling

MOST_STOPS, LONGEST_STOP = 4, 1000
MOST_CHOICES, MOST_LOGPROBS = 4, 5
TEXT, LIST = "<text>", "<list>"


def _whole(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half a surrogate pair is no text")
    return text


def _shape(value: Any) -> str | None:
    """Which branch of a text or a list is meant; what is wrong is then said of that branch."""
    return TEXT if isinstance(value, str) else LIST if isinstance(value, list) else None


Text = Annotated[str, AfterValidator(_whole)]


def _either(said: str) -> Discriminator:
    return Discriminator(_shape, custom_error_type="neither", custom_error_message=said)


class _Strict(BaseModel):
    """Types are not converted, and null means the same as absent, as OpenAI's clients write it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    unserved: ClassVar[Mapping[str, Unserved]] = {}

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, values: Any) -> Any:
        return without_neutral(cls.unserved, values) if isinstance(values, dict) else values


class StreamOptions(_Strict):
    """What a stream carries besides text; ``continuous_usage_stats`` is vLLM's."""

    unserved: ClassVar[Mapping[str, Unserved]] = STREAM
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Request(_Strict):
    """What both kinds of request share. ``top_k`` and ``ignore_eos`` are extensions that other servers have too."""

    unserved: ClassVar[Mapping[str, Unserved]] = REQUEST
    model: Text
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]] = Field([], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, where the request says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to name beside each one that was chosen; None: no probabilities are asked for."""
        raise NotImplementedError

    def sampling(self, choice: int) -> Sampling:
        """How to choose the tokens of one of the ``n`` answers; each has a seed of its own."""
        seed = None if self.seed is None else self.seed + choice
        return Sampling(self.temperature, self.top_p, self.top_k, seed, self.ignore_eos, self.repetition_penalty)


class CompletionRequest(Request):
    """Body of ``POST /v1/completions``: one prompt, as a text or as token ids."""

    unserved: ClassVar[Mapping[str, Unserved]] = COMPLETION
    prompt: Annotated[Annotated[Text, Tag(TEXT)] | Annotated[list[int], Tag(LIST)], _either("must be a text, or a list of token ids")]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            if len(value) > 1:
                raise ValueError(f"one prompt per request is answered, and there are {len(value)}")
            return value[0]
        return value

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value is False else value

    @property
    def limit(self) -> int:
        found = super().limit
        return 16 if found is None else found

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TextPart(_Strict):
    """Part of a message."""

    unserved: ClassVar[Mapping[str, Unserved]] = PART
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise refused("type", f"a part of type {kind[:40]!r} is not supported by this server: the model reads text only.")
        return values


class Message(_Strict):
    """One turn of a conversation."""

    unserved: ClassVar[Mapping[str, Unserved]] = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[list[TextPart], Tag(LIST)], _either("must be a text, or a list of text parts")
    ]
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, values: Any) -> Any:
        role = values.get("role") if isinstance(values, dict) else None
        if role in ("tool", "function"):
            raise refused("role", f"the role {role!r} is not supported by this server: tools are not called here.")
        return values

    def plain(self, developer: str) -> dict[str, str]:
        """As chat templates read it; ``developer`` is what the template calls that role."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        told = {"role": developer if self.role == "developer" else self.role, "content": text}
        return told if self.name is None else told | {"name": self.name}


class ChatRequest(Request):
    """Body of ``POST /v1/chat/completions``; without a limit the answer may fill the context."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _asked_for(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs needs logprobs to be true.")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None
