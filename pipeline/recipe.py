"""This room's slice of the recipe: what model, what text, what to remove, in which shape, how to evaluate.

Every model forbids unknown keys and is frozen; ``trimline.recipe`` puts the rooms' slices together and turns
validation errors into sentences.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
DEFAULT = "default"


class Slice(BaseModel):
    """Base of every part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    starts: tuple[int, ...] | None = Field(None, description="start of every window in the tokenised text; overrides windows and seed")
    token_ids: tuple[tuple[int, ...], ...] | None = Field(None, description="the windows themselves; overrides everything else")


class Space(StrEnum):
    """What can be removed."""

    FFN = "ffn"
    KV_GROUP = "kv_group"
    LAYER = "layer"


class Budget(Slice):
    """How much of one space goes: a fraction of something, or the sizes that stay."""

    remove: Fraction | None = None
    of: Literal["units", "parameters", "flops"] = Field(
        "units", description="units of the space, or the decoder's linear parameters, or its FLOPs"
    )
    context: Count = Field(512, description="tokens that a token sees, for FLOPs")
    keep: Count | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="units per block, or one number per block; for layer, how many"
    )

    @model_validator(mode="after")
    def _one_of(self) -> Budget:
        if (self.remove is None) == (self.keep is None):
            raise ValueError("a budget states either 'remove' or 'keep'")
        return self


class PruneStep(Slice):
    """One round: measure, score, allocate, compensate."""

    method: str = "cfsp"
    budget: dict[Space, Budget] = Field(min_length=1)
    allocation: Literal["cfsp", "uniform", "global"] | None = Field(
        None, description="how a space's budget is spread over the blocks; the method's own by default"
    )
    sharpness: float = Field(1.0, ge=0.0, le=1e6, description="CFSP's a: 0 is uniform")
    score: Literal["published", "normalised"] = Field(
        "published", description="CFSP's fine score as released, or with weight terms that do not cancel"
    )
    round_to: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="widths become multiples of this, the budget kept")
    rounding: Literal["tile", "published"] = Field(
        "tile", description="'published' is the system's own rounding, which may miss the budget"
    )
    compensation: Literal["none", "least_squares"] = "none"
    damping: float = Field(0.01, gt=0.0, le=1e3, description="of least squares, in units of the Gram matrix's mean diagonal")


class PruneSlice(Slice):
    """Steps run in order; each measures the model that the step before left."""

    calibration: CalibrationWindows = CalibrationWindows()
    steps: tuple[PruneStep, ...] = Field(min_length=1)


class Profile(StrEnum):
    """What shapes the consumer of the result accepts; see docs/shape-profiles.md."""

    UNIFORM = "uniform"
    DECILM = "decilm"
    FREE = "free"


class RebuildSlice(Slice):
    """The shape of the result."""

    profile: Profile = Profile.UNIFORM


class EvaluateSlice(Slice):
    """Perplexity over non-overlapping windows."""

    windows: Count = 16
    window: Annotated[int, Field(ge=2, le=10**6)] = 1024
