"""This room's slice of the recipe: what is shipped and what its card says about rights."""

from __future__ import annotations

from pydantic import Field

from pipeline.recipe import Slice


class PackageSlice(Slice):
    """The folder to ship."""

    onnx: bool = Field(True, description="ship the ONNX export beside the checkpoint")
    licence: str | None = Field(None, max_length=100, description="of the dense model, as an SPDX identifier such as apache-2.0")
    base_model: str | None = Field(None, max_length=200, description="hub id of the dense model, for the card")
