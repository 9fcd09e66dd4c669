"""This room's slice of the recipe: into which form, by which lowering, in which precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.common.slices import Count, Slice

Lowering = Literal["auto", "fused", "portable"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
# A graph's perplexity over its checkpoint's, at most. Rounding alone moves fp32 by far less than its bar.
PERPLEXITY_BARS: dict[Precision, float] = {"fp32": 1.001, "fp16": 1.01, "bf16": 1.03, "int8": 1.05, "int4": 1.15}


class ExportSlice(Slice):
    """A checkpoint into ONNX with a key/value cache in and out, or into OpenVINO's form with a state for it. Only what is gated is offered."""

    format: Literal["onnx", "openvino"] = Field(
        "onnx", description="of onnxruntime and onnxruntime-genai, or of openvino and openvino-genai"
    )
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

    group_size: Literal[16, 32, 64, 128] | None = Field(
        None,
        description="inputs that share a scale, of int4 in OpenVINO's form; None: 32. One that does not divide a projection's inputs becomes smaller there",
    )

    @model_validator(mode="after")
    def _agrees(self) -> ExportSlice:
        if self.format == "openvino":
            if self.lowering != "auto":
                raise ValueError("'lowering' is of ONNX graphs; leave it out with format 'openvino'")
            if self.precision == "bf16":
                raise ValueError("OpenVINO computes in bf16 by itself where the processor has it; write weights in fp32 or fp16")
        elif self.group_size is not None:
            raise ValueError("'group_size' is of format 'openvino'; leave it out with 'onnx'")
        if self.group_size is not None and self.precision != "int4":
            raise ValueError("'group_size' is of precision 'int4'")
        return self

    @property
    def most_perplexity(self) -> float:
        """The bar that counts: ``perplexity_bar``, or what is usual for the precision."""
        return PERPLEXITY_BARS[self.precision] if self.perplexity_bar is None else self.perplexity_bar


class BuildSlice(Slice):
    """A portable ONNX graph into a TensorRT engine. The precision is the graph's own: networks are strongly typed."""

    builder: Literal["tensorrt", "tensorrt_rtx"] = Field(
        "tensorrt", description="tensorrt needs the GPU that it builds for; tensorrt_rtx builds anywhere, for named compute capabilities"
    )
    sparsity: Literal["auto", "require", "off"] = Field(
        "auto", description="SPARSE_WEIGHTS where every weight but the output head's is 2:4; require: else refuse"
    )
    precision: Literal["graph", "int8"] = Field(
        "graph", description="int8: quantisers before and behind every product first, calibrated on the calibration text"
    )
    calibration_windows: Count = Field(16, description="of int8")
    calibration_window: Annotated[int, Field(ge=8, le=10**5)] = Field(256, description="tokens per window of int8's calibration")
    largest_ratio: float = Field(
        1.1, gt=1.0, le=1e3, description="of int8: perplexity of the quantised graph over that of the graph before"
    )
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")], ...] = Field(
        (), description="of tensorrt_rtx, such as 8.6; empty: what its portable engines cover"
    )
    level: Annotated[int, Field(ge=0, le=5)] = Field(3, description="of the builder's optimisation: higher takes longer")

    @model_validator(mode="after")
    def _agrees(self) -> BuildSlice:
        if self.compute_capabilities and self.builder != "tensorrt_rtx":
            raise ValueError("'compute_capabilities' belong to builder 'tensorrt_rtx'; tensorrt builds for the GPU that is there")
        return self
