"""The options that several verbs share, each written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimline.cli.session import Session

if TYPE_CHECKING:  # it imports torch
    from pipeline.common.options import RunOptions


class Device(StrEnum):
    """Where to compute."""

    CPU = "cpu"
    CUDA = "cuda"


class DTypeName(StrEnum):
    """In what to measure."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


RecipeFile = Annotated[Path, typer.Argument(help="A YAML recipe, such as `trimline new` writes.")]
Model = Annotated[str, typer.Argument(help="'default', a Hugging Face folder, a .gguf file or a hub id.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for everything that is written: new or empty, or that of the run to go on with.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
DTypeOption = Annotated[
    DTypeName, typer.Option(help="Of the passes that measure activations or train; auto takes bf16 where the processor has it.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=4096, help="For torch and ONNX Runtime; default: every core this process may use.")]
Memory = Annotated[
    str | None,
    typer.Option(help="What may be used, such as 4GiB; a model that needs more is in memory one block at a time. Default: all there is."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that a foreign checkpoint carries.")]
Json = Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run_options(device: Device, dtype: DTypeName, threads: int | None, trust: bool, memory: str | None = None) -> RunOptions:
    """How to run, of what the command line says."""
    from pipeline.common.memory import parse_bytes
    from pipeline.common.options import RunOptions

    given: dict[str, Any] = {"device": device.value, "dtype": dtype.value, "trust_remote_code": trust}
    if threads is not None:
        given["threads"] = threads
    if memory is not None:
        given["memory"] = parse_bytes(memory)
    return RunOptions(**given)


def show_folder(here: Session, folder: Path) -> None:
    """Prints what was written to a folder."""
    from trimline.inspect import inspect_folder, render_inspection

    render_inspection(inspect_folder(folder), here.out)
    here.out.print(f"Written to {folder}", soft_wrap=True, highlight=False)
    here.answer({"folder": str(folder)})
