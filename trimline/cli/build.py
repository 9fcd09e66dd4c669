"""The verb ``build``: an exported folder into an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trimline.cli.session import session


def build(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX_FOLDER", help="As `trimline export --lowering portable` writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder for the engine.")],
    builder: Annotated[
        Literal["tensorrt", "tensorrt_rtx"], typer.Option(help="tensorrt needs the GPU that it builds for; tensorrt_rtx needs none.")
    ] = "tensorrt",
    sparsity: Annotated[
        Literal["auto", "require", "off"], typer.Option(help="auto: sparse kernels are allowed where the graph is 2:4.")
    ] = "auto",
    precision: Annotated[
        Literal["graph", "int8"], typer.Option(help="The graph's own, or int8 by quantisers around every product.")
    ] = "graph",
    request: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT/OUTPUT[xBATCH]", help="What the engine must serve, such as 512/128x4; may be repeated."),
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(metavar="X.Y", help="Of tensorrt_rtx: a compute capability such as 8.6; may be repeated.")
    ] = None,
    calibration: Annotated[str, typer.Option(help="Text that int8 is calibrated on.")] = "default",
    evaluation: Annotated[str, typer.Option(help="Text that int8 is judged on.")] = "default",
    timing_cache: Annotated[Path | None, typer.Option(help="File of kernel timings, read and added to.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="Of what runs on the processor.")] = None,
    memory: Annotated[str | None, typer.Option(help="What may be used, such as 16GiB; the weights may take 0.6 of it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build a TensorRT engine from ONNX."""
    with session(as_json, debug) as here:
        from pipeline.common.memory import parse_bytes
        from pipeline.common.options import RunOptions
        from trimline import api
        from trimline.cli.arguments import parse_request
        from trimline.recipe import checked_slice

        chosen = {"builder": builder, "sparsity": sparsity, "precision": precision, "compute_capabilities": capability or []}
        record = api.build(
            onnx,
            output,
            recipe=checked_slice("build", chosen),
            requests=[parse_request(text) for text in request or []],
            calibration=calibration,
            evaluation=evaluation,
            timing_cache=timing_cache,
            options=RunOptions(threads=threads or RunOptions.threads, memory=None if memory is None else parse_bytes(memory)),
            events=here.events,
        )
        proof = record["sparse_kernels"]
        here.out.print(
            f"{record['bytes']:,} bytes, {record['layers']} layers, flags {', '.join(record['flags']) or 'none'}.", highlight=False
        )
        here.out.print(f"Sparse kernels: {proof['verdict']}: {proof['why']}.", highlight=False, soft_wrap=True)
        state = "Run and compared: " if record["run"]["run"] else "Built, not run: "
        here.out.print(f"{state}{record['run']['proves']}.", highlight=False, soft_wrap=True)
        here.out.print(f"Written to {output}", soft_wrap=True, highlight=False)
        here.answer({"folder": str(output)} | record)
