"""This room's slice of the recipe: which model, which texts, which windows of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.common.slices import Count, Slice

DEFAULT = "default"


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


class TextSlice(Slice):
    """The text that calibrates and the text that evaluates; they must differ."""

    calibration: TextSource = TextSource()
    evaluation: TextSource = TextSource()
    allow_overlap: bool = Field(False, description="calibrate and evaluate on shared text; the report says so")


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
