"""``trimline bench --targets``: what could be timed on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def _show(wanted: bool) -> None:
    if not wanted:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from benchmarks.runs_here import runs_here

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("Runtime", "Opens", "How", "Here"):
        table.add_column(title, overflow="fold")
    for found in runs_here():
        table.add_row(found.runtime, found.opens, found.how, found.lacks or "yes")
    Console().print(table, markup=False)
    raise typer.Exit


Targets = Annotated[
    bool, typer.Option("--targets", is_eager=True, callback=_show, help="Print what could be timed on this machine, and end.")
]
