"""Figures into the docs: text between two HTML comments is replaced, so that no figure is typed by hand."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import TrimlineError


def fill(page: Path, name: str, text: str) -> None:
    """Replaces what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        TrimlineError: the page has no such place.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise TrimlineError(f"{page} has no place for {name}.", f"Write {begin} and {end} where the figures belong.")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def demand_folder(path: Path) -> None:
    """Whether a file can be written there in the end; asked before hours of measuring.

    Raises:
        TrimlineError: its folder does not exist.
    """
    if not path.parent.is_dir():
        raise TrimlineError(f"{path.parent} does not exist, so {path.name} cannot be written there.", "Make the folder, or name another.")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
