"""The report as Markdown: the same sections without plots, readable as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.common.markdown import escape, fence
from trimline.reporting.content import Code, Item, Note, Plot, Section, Table
from trimline.reporting.data import ReportData
from trimline.reporting.headline import all_warnings, headline
from trimline.reporting.sections import sections


def render_markdown(data: ReportData) -> str:
    """GitHub-flavoured Markdown; the same data gives the same text. Markup in the data stays text."""
    lines = [f"# {escape(data.title)}", "", escape(headline(data)), ""]
    for warning in all_warnings(data):
        lines += [f"> **Warning:** {escape(warning)}", ""]
    for section in sections(data):
        lines += _section(section)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {escape(section.title)}", "")
    for item in section.items:
        yield from _item(item)


def _item(item: Item) -> Iterator[str]:
    match item:
        case Note():
            yield from (escape(item.text), "")
        case Code():
            yield from _code(item)
        case Table():
            yield from table_lines(item)
        case Plot():
            pass  # its figures stand in a table


def _code(code: Code) -> Iterator[str]:
    marks = fence(code.text)
    if code.caption:
        yield from (f"**{escape(code.caption)}**", "")
    yield from (f"{marks}{code.language}", code.text, marks, "")


def table_lines(table: Table) -> Iterator[str]:
    """A table in Markdown, and the formulas of its figures."""
    if table.caption:
        yield from (f"**{escape(table.caption)}**", "")
    yield _line(column.title for column in table.columns)
    yield "|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|"
    for row in table.rows:
        yield _line(cell.whole for cell in row)
    yield ""
    formulas = [f"- {escape(name)}: {escape(formula)}" for name, formula in table.formulas()]
    if formulas:
        yield from (*formulas, "")


def _line(texts: Iterator[str] | list[str]) -> str:
    return "| " + " | ".join(escape(text) for text in texts) + " |"
