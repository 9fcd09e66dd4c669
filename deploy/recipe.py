"""This room's slice of the recipe: what is shipped and what its card says about rights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exporters.gguf.recipe import GgufSlice
from pipeline.common.slices import Slice

TargetName = Literal["onnxruntime-genai", "triton", "kserve", "llama.cpp", "openvino", "vllm", "hub"]  # as deploy.targets.TARGETS


class OpenvinoSlice(Slice):
    """The model in OpenVINO's form, where a package brings it and the run has not exported it."""

    precision: Literal["fp32", "fp16", "int8", "int4"] = Field("fp16", description="of the weights")
    perplexity_bar: float | None = Field(None, ge=1.0, le=1e6, description="as export.perplexity_bar")


class PackageSlice(Slice):
    """The folder to ship."""

    onnx: bool = Field(True, description="ship the ONNX export beside the checkpoint")
    licence: str | None = Field(None, max_length=100, description="of the dense model, as an SPDX identifier such as apache-2.0")
    base_model: str | None = Field(None, max_length=200, description="hub id of the dense model, for the card")
    targets: tuple[TargetName, ...] = Field((), description="servers, or a model hub, that the package brings a folder for, below serve/")
    gguf: GgufSlice = Field(GgufSlice(), description="of the file for llama.cpp: precision and quantisation")
    openvino: OpenvinoSlice = Field(OpenvinoSlice(), description="of the folder for OpenVINO: precision")
    served_name: str = Field(
        "model",
        # What Kubernetes takes as a name; every server here takes it too.
        pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="what clients of those servers call the model",
    )
