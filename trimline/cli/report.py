"""``trimline report``: the page, drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.options import Debug, Json, Output
from trimline.cli.session import session


def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of `trimline run`, or a folder with report.json.")],
    output: Output,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw a report again."""
    with session(as_json, debug) as here:
        from trimline import api

        page = api.report(folder, output)
        here.out.print(f"Report: {page}", soft_wrap=True, highlight=False)
        here.answer({"report": str(page)})
