"""This room's slice of the recipe: what model, what text, what to remove, in which shape, how to evaluate.

Every model forbids unknown keys and is frozen; ``trimline.recipe`` puts the rooms' slices together and turns
validation errors into sentences.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.architecture.spaces import Space
from pipeline.common.slices import Count, Fraction, Slice
from pipeline.sources.recipe import CalibrationWindows


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


class Search(Slice):
    """Sizes by the model's own predictions: choices under the same budget are tried, and the one nearest to the dense model stays."""

    evaluations: Annotated[int, Field(ge=1, le=10**6)] = Field(400, description="choices that are judged, in all rounds together")
    seconds: float | None = Field(None, gt=0.0, le=1e8, description="that judging may take; what is begun is finished")
    offspring: Annotated[int, Field(ge=1, le=10_000)] = Field(16, description="mutants of the best choice in every generation")
    survivors: tuple[Count, ...] = Field((4,), min_length=1, description="how many of them are left after each round but the last")
    tokens: tuple[Count, ...] = Field((1024, 8192), min_length=2, description="calibration tokens of each round")
    switches: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="sublayers of a mutant that get more, at most")
    levels: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="by how many sizes, at most")
    readers: Literal["refitted", "zeros"] = Field(
        "refitted", description="of a choice that is judged: as the step's compensation leaves them, or with zeros alone"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _rounds(self) -> Search:
        if len(self.tokens) != len(self.survivors) + 1:
            raise ValueError("'tokens' has one entry more than 'survivors': the last round leaves one")
        if list(self.tokens) != sorted(self.tokens):
            raise ValueError("'tokens' must not fall from round to round")
        if list(self.survivors) != sorted(self.survivors, reverse=True) or self.survivors[0] > self.offspring:
            raise ValueError("'survivors' must not rise from round to round, nor above 'offspring'")
        return self


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
    search: Search | None = Field(None, description="from the sizes that the budget comes to, look for better ones by trial")
    sharpness: float = Field(1.0, ge=0.0, le=1e6, description="CFSP's a: 0 is uniform")
    round_to: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="widths become multiples of this, the budget kept")
    rounding: Literal["tile", "published"] = Field(
        "tile", description="'published' is the system's own rounding, which may miss the budget"
    )
    compensation: Literal["none", "bias", "least_squares", "linear_map", "weighted_map"] = Field(
        "none", description="what makes up for removed units: the readers' biases, or their remaining weights; for blocks, a linear map"
    )
    damping: float = Field(0.01, gt=0.0, le=1e3, description="of least squares, in units of the Gram matrix's mean diagonal")

    @model_validator(mode="after")
    def _one_budget(self) -> PruneStep:
        if sum(map(bool, (self.budget, self.pooled, self.target))) != 1:
            raise ValueError("a step states exactly one of 'budget', 'pooled' and 'target'")
        if self.allocation == "optimal" and not self.target:
            raise ValueError("allocation 'optimal' belongs to a target")
        if self.search and not set(self.budget) <= {Space.FFN, Space.KV_GROUP, Space.LAYER}:
            raise ValueError("'search' chooses sizes of ffn, kv_group and layer")
        if Space.WEIGHT in self.budget and len(self.budget) > 1:
            raise ValueError("space weight needs a step of its own")
        return self

    def tile(self, space: Space) -> int:
        """What sizes of a space are multiples of."""
        return self.round_to if space is Space.FFN else 1

    @property
    def allow_empty(self) -> bool:
        """Whether a block may lose a whole sublayer to a pooled budget or a target."""
        stated = self.pooled or self.target
        return stated is not None and stated.allow_empty


class PruneSlice(Slice):
    """Steps run in order; each measures the model that the step before left."""

    calibration: CalibrationWindows = CalibrationWindows()
    steps: tuple[PruneStep, ...] = Field(min_length=1)
