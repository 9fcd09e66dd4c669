"""This room's slices of the recipe: perplexity, and tasks of lm-eval."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.common.slices import Count, Slice


class RetrievalSlice(Slice):
    """Names that stand far back in a made-up text, asked for at its end."""

    prompts: Annotated[int, Field(ge=2, le=1000)] = Field(16, description="texts of each length, asking for places spread evenly over it")
    longest: Annotated[int, Field(ge=256, le=16_384)] | None = Field(
        None, description="tokens of the longest text; None: the model's positions, at most 16,384"
    )


class EvaluateSlice(Slice):
    """Perplexity over non-overlapping windows."""

    windows: Count = 16
    window: Annotated[int, Field(ge=2, le=10**6)] = 1024
    retrieval: RetrievalSlice | None = Field(None, description="ask both checkpoints for names in long texts; None: do not")


class LmEvalSlice(Slice):
    """Tasks of the lm-eval harness: for the dense and the pruned checkpoint, and for the pruned model's graph."""

    tasks: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        min_length=1,
        description="'trimline' or one of its tasks, task files of lm-eval (.yaml), folders of them, or names that lm-eval knows, whose data is on the hub",
    )
    shots: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="solved examples before a question; None: as the task says"
    )
    limit: Count | None = Field(None, description="documents per task, the first ones; None: all")
    batch: Annotated[int, Field(ge=1, le=10**5)] = Field(1, description="documents that are read at once")
    allow_task_code: bool = Field(False, description="run Python code that local task files name; read them first")
