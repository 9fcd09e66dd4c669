"""The table that ends a run."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from trimline.reporting.content import Cell, Table
from trimline.reporting.data import ReportData
from trimline.reporting.headline import all_warnings, headline
from trimline.reporting.tables import comparison_table

STYLES = {"good": "green", "bad": "red", "quiet": "dim", "plain": ""}


def render_terminal(data: ReportData, console: Console, page: Path | None = None) -> None:
    """Prints the result: one sentence, dense against pruned, warnings, and where ``page`` (the HTML report) lies."""
    table = comparison_table(data)
    if table is not None:
        console.print(rich_table(table, data.title))
    console.print(Text(headline(data)))
    for target in data.targets:
        console.print(Text(f"Target, {target.asked}: {target.reached}; {target.outcome}"))
    for warning in all_warnings(data):
        console.print(Text(f"Warning: {warning}", style="yellow"))
    if page is not None:
        console.print(Text(f"Report: {page}"), soft_wrap=True)


def rich_table(table: Table, title: str) -> RichTable:
    """A table for the terminal."""
    shown = RichTable(box=box.SIMPLE_HEAD, title=Text(title), title_style="bold", title_justify="left")
    for column in table.columns:
        shown.add_column(Text(column.title), justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(_text(cell) for cell in row))
    return shown


def _text(cell: Cell) -> Text:
    return Text(cell.whole, style=STYLES[cell.tone])
