"""The base of every slice of a recipe, and the numbers that many slices share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


Count = Annotated[int, Field(ge=1, le=10**9)]


class Slice(BaseModel):
    """Base of every part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
