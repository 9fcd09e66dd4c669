"""This room's slice of the recipe: into which form, by which lowering, in which precision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.recipe import Slice

Lowering = Literal["auto", "fused", "portable"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
# A graph's perplexity over its checkpoint's, at most. Rounding alone moves fp32 by far less than its bar.
PERPLEXITY_BARS: dict[Precision, float] = {"fp32": 1.001, "fp16": 1.01, "bf16": 1.03, "int8": 1.05, "int4": 1.15}


class ExportSlice(Slice):
    """A checkpoint into ONNX with a key/value cache in and out. Only what is gated is offered."""

    format: Literal["onnx"] = "onnx"
    lowering: Lowering = Field(
        "auto",
        description="fused: what ONNX Runtime runs fastest; portable: standard operators only; auto: fused where it is known to be right",
    )
    precision: Precision = Field("fp32", description="of the weights; activations are fp32 for int8 and int4, else the same")
    logits: Literal["all", "last"] = Field(
        "last", description="of every row's last token, which spares prefill most of the output head, or of all positions"
    )
    perplexity_bar: float | None = Field(
        None, ge=1.0, le=1e6, description="what the graph's perplexity may be over the checkpoint's; None: by precision"
    )

    @property
    def most_perplexity(self) -> float:
        """The bar that counts: ``perplexity_bar``, or what is usual for the precision."""
        return PERPLEXITY_BARS[self.precision] if self.perplexity_bar is None else self.perplexity_bar
