"""What a report consists of, before it has a format: sections of tables, plots, notes and code.

HTML and Markdown both walk these, so that they cannot say different things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Tone = Literal["plain", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what stands there.
        tone: how it is coloured.
        formula: how the figure named here is computed; renderings put it beside the name.
        detail: less important than the text: an interval, a standard error.
    """

    text: str
    tone: Tone = "plain"
    formula: str = ""
    detail: str = ""

    @property
    def whole(self) -> str:
        """Text and detail on one line."""
        return f"{self.text} {self.detail}".rstrip()


OUTCOMES: dict[str, Tone] = {"met": "good", "missed": "bad", "not resolved": "quiet"}


def outcome_cell(outcome: str, detail: str = "") -> Cell:
    """What became of a target: ``met``, ``missed: …`` or ``not resolved: …``."""
    return Cell(outcome, OUTCOMES[outcome.split(":")[0]], detail=detail)


@dataclass(frozen=True)
class Column:
    """A column's heading. Numeric columns are aligned to the right."""

    title: str
    numeric: bool = False
    formula: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; ``folded`` ones start closed where the format can do that."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: bool = False

    def formulas(self) -> Iterator[tuple[str, str]]:
        """(name, formula) of every metric that stands in the table, in reading order."""
        seen: set[str] = set()
        named = [(column.title, column.formula) for column in self.columns]
        named += [(cell.text, cell.formula) for row in self.rows for cell in row]
        for name, formula in named:
            if formula and name not in seen:
                seen.add(name)
                yield name, formula


@dataclass(frozen=True)
class Note:
    """A sentence of its own."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    text: str
    language: str
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """Where a plot stands; ``trimline.reporting.plots`` draws the one of that key."""

    key: str
    caption: str


Item = Table | Note | Code | Plot


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    key: str
    title: str
    items: tuple[Item, ...]


def text_row(*texts: str) -> tuple[Cell, ...]:
    """A row of plain cells."""
    return tuple(Cell(text) for text in texts)
