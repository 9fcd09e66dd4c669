"""This room's slice of the recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.common.slices import Slice


class CurveSlice(Slice):
    """Other counts of experts that are judged beside the one that the recipe asks for."""

    removed: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = Field(
        (0.125, 0.25, 0.375, 0.5), max_length=64, description="shares of each block's experts; an empty list judges none"
    )
