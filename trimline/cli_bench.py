"""Options of ``trimline bench``: what is timed, and ``--targets``, what could be timed on this machine."""

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
        table.add_row(found.runtime, found.opens, found.how, found.lacks or ", ".join(filter(None, ("yes", found.where))))
    Console().print(table, markup=False)
    raise typer.Exit


Targets = Annotated[
    bool, typer.Option("--targets", is_eager=True, callback=_show, help="Print what could be timed on this machine, and end.")
]
Workloads = Annotated[
    list[str] | None,
    typer.Option(metavar="PROMPT/OUTPUT", help="Instead of the recipe's, such as 512/128; repeat it. 'named': 128/128 and four others."),
]
Batches = Annotated[list[int] | None, typer.Option(min=1, help="Time every workload with it; repeat it for a sweep.")]
RuntimeName = Annotated[str | None, typer.Option(help="Instead of the recipe's; --targets lists them.")]
MostSeconds = Annotated[
    float | None,
    typer.Option(min=1.0, help="Of timing, all together; by default the recipe's, and in proportion where more workloads are named."),
]
