"""This room's slice of the recipe: into which form, by which lowering."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.recipe import Slice

Lowering = Literal["auto", "fused", "portable"]


class ExportSlice(Slice):
    """A checkpoint into ONNX with a key/value cache in and out.

    Only what is gated is offered: other precisions join when their gate exists.
    """

    format: Literal["onnx"] = "onnx"
    lowering: Lowering = Field(
        "auto",
        description="fused: what ONNX Runtime runs fastest; portable: standard operators only; auto: fused where it is known to be right",
    )
    precision: Literal["fp32"] = "fp32"
    logits: Literal["all", "last"] = Field(
        "all", description="of every position, or (fused only) of the last one, which spares prefill most of the output head"
    )
