"""``trimline export``: ONNX, OpenVINO's form or GGUF."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from trimline.cli.options import (
    Debug,
    Device,
    DeviceOption,
    DTypeName,
    Json,
    Memory,
    Model,
    Output,
    Threads,
    Trust,
    run_options,
    show_folder,
)
from trimline.cli.session import session


def export(
    model: Model,
    output: Output,
    form: Annotated[
        Literal["onnx", "openvino", "gguf"], typer.Option("--format", help="openvino: for OpenVINO GenAI; gguf: one file for llama.cpp.")
    ] = "onnx",
    lowering: Annotated[
        Literal["auto", "fused", "portable"], typer.Option(help="fused: fastest in ONNX Runtime; portable: standard operators.")
    ] = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "int4"] | None, typer.Option(help="Of the weights; default: fp32, and fp16 in GGUF.")
    ] = None,
    perplexity_bar: Annotated[
        float | None, typer.Option(min=1.0, help="What the result's perplexity may be over the model's; default: by precision.")
    ] = None,
    logits: Annotated[Literal["all", "last"], typer.Option(help="Of each row's last token, or of all positions.")] = "last",
    group_size: Annotated[int | None, typer.Option(help="Inputs that share a scale, of int4 in OpenVINO: 16, 32, 64 or 128.")] = None,
    quantise: Annotated[str | None, typer.Option(metavar="KIND", help="Let llama.cpp quantise the GGUF, to q4_k_m, say.")] = None,
    device: DeviceOption = Device.CPU,
    memory: Memory = None,
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write ONNX, OpenVINO's form or GGUF and prove it."""
    with session(as_json, debug) as here:
        if form == "gguf":
            from trimline.cli.gguf import export_gguf, only_for_onnx

            only_for_onnx(lowering != "auto", logits != "last", group_size is not None)
            wanted = {"precision": precision, "quantise": quantise, "perplexity_bar": perplexity_bar}
            return export_gguf(here, model, output, wanted, run_options(device, DTypeName.AUTO, threads, trust, memory))
        from trimline import api
        from trimline.recipe import checked_slice

        _only_for_gguf(quantise)
        chosen = {
            "format": form,
            "lowering": lowering,
            "precision": precision or "fp32",
            "logits": logits,
            "perplexity_bar": perplexity_bar,
        }
        chosen |= {"group_size": group_size} if group_size is not None else {}
        recipe = checked_slice("export", chosen)
        options = run_options(device, DTypeName.AUTO, threads, trust, memory)
        return show_folder(here, api.export(model, output, recipe=recipe, options=options, events=here.events))


def _only_for_gguf(quantise: str | None) -> None:
    if quantise is not None:
        from pipeline.common.errors import TrimlineError

        raise TrimlineError("--quantise is for GGUF, and the format is another.", "Add --format gguf, or use --precision int4.")
