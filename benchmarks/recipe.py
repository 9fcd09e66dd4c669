"""This room's slice of the recipe: which requests are timed, and for how long."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from benchmarks.runtimes.names import Runtime
from pipeline.common.slices import Count, Slice

LEAST_ROUNDS = 25  # below this a comparison is printed as not resolved
Phase = Literal["prefill", "decode"]  # of a request: the pass over its prompt, and the steps after it
PHASES: tuple[Phase, ...] = get_args(Phase)
NAMED = "named"  # stands for these, which other tools time too
NAMED_WORKLOADS = ("128/128", "512/128", "1024/1024", "2048/128", "128/2048")


class Workload(Slice):
    """One request shape: a prompt pass, then single-token steps until ``output`` tokens are made; EOS is ignored.

    In a recipe its name will do: ``512/128``, or ``512/128x4`` for a batch of four.
    """

    prompt: Count
    output: Count = 1
    batch: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)(?:\s*[x×](\d+))?", value)
        if not found:
            raise ValueError(f"{value!r} is no workload; write prompt/output, such as 512/128, or 512/128x4 for a batch of four")
        return {"prompt": int(found[1]), "output": int(found[2]), "batch": int(found[3] or 1)}

    @property
    def name(self) -> str:
        """``512/128``, or ``512/128 ×4`` for a batch of four."""
        return f"{self.prompt}/{self.output}" + (f" ×{self.batch}" if self.batch > 1 else "")

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prompt pass."""
        return self.output - 1


class BenchmarkSlice(Slice):
    """What is measured. The default times a 512-token prompt pass, and decoding after a past of 128 tokens."""

    workloads: tuple[Workload, ...] = Field((Workload(prompt=512), Workload(prompt=128, output=17)), min_length=1)

    @field_validator("workloads", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return NAMED_WORKLOADS if value == NAMED else value

    runtime: Runtime = Field(
        "onnxruntime",
        description="what runs the models; torch and torch_compile compute where the run does, the others but onnxruntime need a GPU",
    )
    rounds: Count = Field(LEAST_ROUNDS, description=f"in each, every model is timed once; fewer than {LEAST_ROUNDS} resolve nothing")
    rounds_per_opening: Count = Field(5, description="then every model is opened anew, since where memory lies changes its speed")
    warm_up: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="rounds that are thrown away after every opening")
    minimum_seconds: float = Field(3.0, ge=0.0, le=1e5, description="of measured time per model and workload")
    most_seconds: float = Field(
        120.0, gt=0.0, le=1e6, description="in all: rounds are added while dense against itself is not 1 ± 0.02, up to here"
    )
    latency_table: str | None = Field(
        None, description="folder of a latency table that was measured on this machine; a run with a target of time measures one by default"
    )
    seed: Annotated[int, Field(ge=0, le=2**31)] = Field(0, description="of prompts, and of the order within a round")
