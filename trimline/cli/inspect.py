"""``trimline inspect``: what a folder or a GGUF file holds, and what loads it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.options import Debug, Json
from trimline.cli.session import session


def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, a plan, an ONNX or OpenVINO folder, or a .gguf file.")],
    source: Annotated[Path | None, typer.Option(help="The dense checkpoint that a plan is for.")] = None,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Only whether each weight is 2:4, along the axis that is summed over.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show widths, sizes, 2:4, and who loads it."""
    with session(as_json, debug) as here:
        from trimline.inspect import inspect_folder, inspect_sparsity, render_inspection, render_sparsity

        if sparsity:
            weights = inspect_sparsity(folder)
            render_sparsity(weights, here.out)
            here.answer({"folder": str(folder), "weights": [weight.as_record() for weight in weights]})
            return

        inspection = inspect_folder(folder, source)
        render_inspection(inspection, here.out)
        here.answer(asdict(inspection))
