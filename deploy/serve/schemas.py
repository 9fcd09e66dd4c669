"""The part of OpenAI's requests that this server answers. What it cannot do is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from deploy.serve.sampling import Sampling

MOST_STOPS, LONGEST_STOP = 4, 1000
# Asked for like this, an option changes nothing; asked for in any other way it is not supported.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "store": (False,),
}


def _whole(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half a surrogate pair is no text")
    return text


Text = Annotated[str, AfterValidator(_whole)]


class _Strict(BaseModel):
    """Types are not converted, and null means the same as absent, as OpenAI's clients write it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Request(_Strict):
    """What both kinds of request share. ``top_k`` and ``ignore_eos`` are extensions that other servers have too."""

    model: Text
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]] = Field([], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False
    user: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_supported(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        asked = {key: value for key, value in values.items() if key in NEUTRAL and value is not None}
        for key, value in asked.items():
            if not any(type(value) is type(neutral) or _numbers(value, neutral) for neutral in NEUTRAL[key]) or value not in NEUTRAL[key]:
                raise ValueError(f"{key} is not supported by this server, or only as {' or '.join(map(repr, NEUTRAL[key]))}")
        return {key: value for key, value in values.items() if key not in asked}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, where the request says."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """How to choose tokens."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed, self.ignore_eos)


class CompletionRequest(Request):
    """Body of ``POST /v1/completions``: one prompt, as a text or as token ids."""

    prompt: Text | list[int]
    max_tokens: int = Field(16, ge=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            if len(value) > 1:
                raise ValueError("one prompt per request")
            return value[0]
        return value

    @property
    def limit(self) -> int | None:
        return self.max_tokens


class TextPart(_Strict):
    """Part of a message."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(Request):
    """Body of ``POST /v1/chat/completions``; without a limit the answer may fill the context."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _numbers(value: Any, neutral: Any) -> bool:
    return not isinstance(value, bool) and not isinstance(neutral, bool) and isinstance(value, int | float) and isinstance(neutral, int)
