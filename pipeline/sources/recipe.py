"""This room's slice of the recipe: which model, which texts, which windows of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.common.slices import Count, Slice

DEFAULT = "default"
Role = Literal["calibration", "recovery", "evaluation"]


class Source(Slice):
    """Something with a name; a bare string in the recipe is its ``source``."""

    source: str = DEFAULT

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class ModelSlice(Source):
    """Where the dense model comes from."""

    source: str = Field(DEFAULT, description="'default', a local Hugging Face folder, a local .gguf file, or a hub id")
    revision: str | None = Field(None, description="of a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the weights that are written")


class TextSource(Source):
    """One text: the built-in prose, a local file, or a hub data set."""

    source: str = Field(DEFAULT, description="'default', a .txt/.jsonl/.parquet file, or the id of a hub data set")
    config: str | None = Field(None, description="of a hub data set")
    split: str | None = Field(None, description="of a hub data set, or 'calibration'/'evaluation' of the default text")
    column: str = Field("text", description="of a .jsonl or .parquet file or a data set")
    share: float = Field(1.0, gt=0.0, le=1e6, description="of the windows, beside the other texts of a list")


def _listed(value: Any) -> Any:
    """One text stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Texts = Annotated[tuple[TextSource, ...], BeforeValidator(_listed)]


class TextSlice(Slice):
    """The texts that calibrate, train and evaluate; those that evaluate must differ from the others."""

    calibration: Texts = Field((TextSource(),), min_length=1, max_length=64)
    recovery: Texts = Field((), max_length=64, description="that recovery trains on; those that calibrate where there are none")
    evaluation: Texts = Field((TextSource(),), min_length=1, max_length=64)
    allow_overlap: bool = Field(False, description="calibrate, train and evaluate on shared text; the report says so")

    @model_validator(mode="after")
    def _every_text_is_evaluated_whole(self) -> TextSlice:
        if any(text.share != 1.0 for text in self.evaluation):
            raise ValueError("every text that evaluates is read by itself, so it has no share")
        return self

    @model_serializer(mode="wrap")
    def _one_text_as_one(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A list of one as that one, as people write it."""
        plain: dict[str, Any] = handler(self)
        return {name: value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for name, value in plain.items()}

    def of(self, role: Role) -> tuple[TextSource, ...]:
        """The texts of a role."""
        found: tuple[TextSource, ...] = getattr(self, role)
        return found

    @property
    def every(self) -> tuple[TextSource, ...]:
        """All of them."""
        return (*self.calibration, *self.recovery, *self.evaluation)


class CalibrationWindows(Slice):
    """Which tokens the statistics are measured on."""

    windows: Count = 64
    window: Annotated[int, Field(ge=2, le=10**6)] = 512
    seed: int = 0
    overlap: bool = Field(
        False,
        description="the windows may hold more tokens together than the text has, as in the published codes, where they overlap by chance",
    )
    begin: bool = Field(
        True,
        description="every window begins with what the tokenizer puts before a text, in place of as many of its tokens; `false` as in the published codes",
    )
    starts: tuple[int, ...] | None = Field(None, description="start of every window in the tokenised text; overrides windows and seed")
    token_ids: tuple[tuple[int, ...], ...] | None = Field(None, description="the windows themselves; overrides everything else")
