"""The verb ``verify``: whether a folder still is what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.session import session


def verify(
    folder: Annotated[Path, typer.Argument(help="A package, a run's output folder, or any folder that a verb wrote.")],
    against: Annotated[Path | None, typer.Option(help="The checkpoint that the folder was made from, to gate it again.")] = None,
    plan: Annotated[Path | None, typer.Option(help="With --against, of a rebuilt checkpoint: the plan folder.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the sums.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="For torch and ONNX Runtime.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Check sums, shapes and gates again."""
    with session(as_json, debug) as here:
        from pipeline.common.options import RunOptions
        from trimline.verify.folders import verify_folder

        options = RunOptions(threads=threads) if threads else RunOptions()
        found = verify_folder(folder, against=against, plan=plan, quick=quick, options=options, events=here.events)
        for line in (*map(str, found.problems), *found.passed, *(f"not checked: {line}" for line in found.left_out)):
            here.out.print(line, markup=False, highlight=False, soft_wrap=True)
        here.answer({"folder": str(folder), **found.as_record()})
        if found.problems:
            raise typer.Exit(1)
