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
    overlap: bool = Field(
        False,
        description="the windows may hold more tokens together than the text has, as in the published codes, where they overlap by chance",
    )
    starts: tuple[int, ...] | None = Field(None, description="start of every window in the tokenised text; overrides windows and seed")
    token_ids: tuple[tuple[int, ...], ...] | None = Field(None, description="the windows themselves; overrides everything else")


class Space(StrEnum):
    """What can be removed."""

    FFN = "ffn"
    KV_GROUP = "kv_group"
    LAYER = "layer"
    RESIDUAL = "residual"  # channels of the residual stream, the same in every block
    WEIGHT = "weight"  # single weights of every projection in the blocks; no shape changes


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


class Pool(Slice):
    """One budget over several spaces, whose units compete by score."""

    spaces: tuple[Space, ...] = Field((Space.FFN, Space.KV_GROUP), min_length=1)
    remove: Fraction
    of: Literal["parameters", "flops"] = Field("parameters", description="the decoder's linear parameters, or its FLOPs")
    context: Count = Field(512, description="tokens that a token sees, for FLOPs")
    allow_empty: bool = Field(False, description="a block may lose its whole attention or FFN")

    @model_validator(mode="after")
    def _units_of_blocks(self) -> Pool:
        if set(self.spaces) - {Space.FFN, Space.KV_GROUP}:
            raise ValueError("a pooled budget is of ffn and kv_group")
        return self


class Target(Slice):
    """What the result is to be, instead of what is to go; several things at once hold together.

    ``parameters``, ``flops`` and ``memory`` are at most what they say: a share of the dense model's up to 1, a number above.
    """

    speedup: float | None = Field(None, gt=1.0, le=1e3, description="how many times as fast as the dense model, on the workload")
    latency_ms: float | None = Field(None, gt=0.0, le=1e9, description="milliseconds that the workload takes")
    workload: str = Field(
        "decode", min_length=1, description="of speedup and latency_ms: decode (one step), prefill, or the whole of a timed workload"
    )
    parameters: float | None = Field(None, gt=0.0, le=1e15, description="at most so many numbers in the checkpoint, or that share")
    flops: float | None = Field(None, gt=0.0, le=1e18, description="at most so many of the decoder per token, or that share")
    memory: float | None = Field(None, gt=0.0, le=1e18, description="at most so many bytes of weights and cache, or that share")
    context: Count = Field(512, description="tokens that a token sees, for FLOPs; tokens in the cache, for memory")
    spaces: tuple[Space, ...] | None = Field(
        None, min_length=1, description="what may go; by default what the method scores of ffn, kv_group"
    )
    allow_empty: bool = Field(False, description="a block may lose its whole attention or FFN")

    @model_validator(mode="after")
    def _something_that_can_be_met(self) -> Target:
        if not any((self.is_timed, self.parameters, self.flops, self.memory)):
            raise ValueError("a target states one of 'speedup', 'latency_ms', 'parameters', 'flops' and 'memory', or several")
        if self.spaces and set(self.spaces) - {Space.FFN, Space.KV_GROUP} and self.spaces != (Space.LAYER,):
            raise ValueError("a target is met in ffn and kv_group, or in layer alone")
        return self

    @property
    def is_timed(self) -> bool:
        """Whether it speaks of time, which has to be measured."""
        return self.speedup is not None or self.latency_ms is not None


class PruneStep(Slice):
    """One round: measure, score, allocate, compensate."""

    method: str = "cfsp"
    budget: dict[Space, Budget] = Field({}, description="how much goes, per space")
    pooled: Pool | None = Field(None, description="instead of budget: one for several spaces together")
    target: Target | None = Field(None, description="instead of budget: what the result is to be")
    options: dict[str, Any] = Field({}, description="the method's own")
    shots: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="measure and remove in so many equal parts")
    sequential: bool | None = Field(
        None, description="score and update each block on what the pruned blocks before it give; the method's own by default"
    )
    pattern: Annotated[str, Field(pattern=r"^(unstructured|[1-9]\d?:[1-9]\d?)$")] = Field(
        "unstructured", description="of space weight: any weight, or n:m, which removes n of every m inputs in a row"
    )
    allocation: Literal["cfsp", "uniform", "global", "raw", "optimal"] | None = Field(
        None, description="how a space's budget is spread over the blocks; the method's own by default; optimal belongs to a target"
    )
    sharpness: float = Field(1.0, ge=0.0, le=1e6, description="CFSP's a: 0 is uniform")
    round_to: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="widths become multiples of this, the budget kept")
    rounding: Literal["tile", "published"] = Field(
        "tile", description="'published' is the system's own rounding, which may miss the budget"
    )
    compensation: Literal["none", "bias", "least_squares"] = Field(
        "none", description="what makes up for removed units: the readers' biases, or their remaining weights"
    )
    damping: float = Field(0.01, gt=0.0, le=1e3, description="of least squares, in units of the Gram matrix's mean diagonal")

    @model_validator(mode="after")
    def _one_budget(self) -> PruneStep:
        if sum(map(bool, (self.budget, self.pooled, self.target))) != 1:
            raise ValueError("a step states exactly one of 'budget', 'pooled' and 'target'")
        if self.allocation == "optimal" and not self.target:
            raise ValueError("allocation 'optimal' belongs to a target")
        if Space.WEIGHT in self.spaces and len(self.spaces) > 1:
            raise ValueError("space weight needs a step of its own")
        return self

    @property
    def spaces(self) -> tuple[Space, ...]:
        """What the step is about."""
        if self.target:
            return self.target.spaces or _usual_spaces(self.method)
        return self.pooled.spaces if self.pooled else tuple(self.budget)

    @property
    def allow_empty(self) -> bool:
        """Whether a block may lose a whole sublayer to a pooled budget or a target."""
        stated = self.pooled or self.target
        return stated is not None and stated.allow_empty


def _usual_spaces(name: str) -> tuple[Space, ...]:
    """What a target may take units from: of ffn and kv_group what the method scores; of methods that score neither, whole blocks."""
    from pipeline.methods import METHODS  # which know recipes

    scored = METHODS[name].spaces if name in METHODS else frozenset()
    return tuple(space for space in (Space.FFN, Space.KV_GROUP) if space in scored) or (Space.LAYER,)


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


class LmEvalSlice(Slice):
    """Tasks of the lm-eval harness: for the dense and the pruned checkpoint, and for the pruned model's graph."""

    tasks: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        min_length=1, description="task files of lm-eval (.yaml), folders of them, or names that lm-eval knows, whose data is on the hub"
    )
    shots: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="solved examples before a question; None: as the task says"
    )
    limit: Count | None = Field(None, description="documents per task, the first ones; None: all")
    batch: Annotated[int, Field(ge=1, le=10**5)] = Field(1, description="documents that are read at once")
    allow_task_code: bool = Field(False, description="run Python code that local task files name; read them first")


class LoRASlice(Slice):
    """Low-rank adapters beside the projections, merged into them at the end."""

    rank: Annotated[int, Field(ge=1, le=2**16)] = Field(16, description="of every adapter, or its mean over the blocks")
    alpha: float = Field(32.0, gt=0.0, le=1e6, description="what an adapter adds is scaled by alpha / rank")
    dropout: Fraction = 0.0
    targets: tuple[Literal["attention", "ffn"], ...] = Field(("attention", "ffn"), min_length=1, description="whose projections")
    rank_by: Literal["uniform", "importance"] = Field("uniform", description="importance: our reading of CFSP's idea, the sum kept")
    more_to: Literal["important", "pruned"] = Field("important", description="which blocks get more by importance")


class RecoverSlice(Slice):
    """Training of the smaller model."""

    kind: Literal["lora", "full"] = Field("lora", description="adapters that are merged, or every weight")
    loss: Literal["text", "distillation"] = Field("text", description="cross-entropy of the text, or KL divergence to the dense model")
    temperature: float = Field(1.0, gt=0.0, le=1e3, description="of distillation")
    hidden_states: float = Field(0.0, ge=0.0, le=1e6, description="of distillation: weight of the distance between block outputs")
    steps: Count = Field(200, description="optimiser steps")
    batch: Count = Field(8, description="windows per step, over all devices")
    micro_batch: Count = Field(4, description="windows that one device holds at once; gradients are summed up to batch")
    learning_rate: float | None = Field(None, gt=0.0, le=10.0, description="at its height; 2e-4 for lora, 2e-5 for full")
    warm_up: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the learning rate after that")
    weight_decay: float = Field(0.0, ge=0.0, le=10.0)
    windows: Count = Field(64, description="of the calibration text")
    window: Annotated[int, Field(ge=2, le=10**6)] = 512
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of the windows' starts, their order, adapters and dropout")
    save_every: Count = Field(50, description="steps between the states that a killed run goes on from")
    sharded: bool = Field(False, description="weights, gradients and optimiser shared by the processes that torchrun started (FSDP)")
    lora: LoRASlice = LoRASlice()

    @model_validator(mode="after")
    def _agrees(self) -> RecoverSlice:
        if self.loss == "text" and {"temperature", "hidden_states"} & self.model_fields_set:
            raise ValueError("'temperature' and 'hidden_states' belong to loss 'distillation'")
        if self.kind == "full" and "lora" in self.model_fields_set:
            raise ValueError("'lora' belongs to kind 'lora'")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The one given, or what suits the kind."""
        return self.learning_rate or (2e-4 if self.kind == "lora" else 2e-5)
