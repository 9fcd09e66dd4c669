"""Cells and tables in Markdown, for the page of a benchmark and for the studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from benchmarks.formulas.statistics import Ratio


class Interval(Protocol):
    """A value and the ends of its interval."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def table(columns: Mapping[str, Callable[[Any], str]], rows: Iterable[Any]) -> str:
    """Columns, each a title and what it shows of a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def interval(found: Interval) -> str:
    """A ratio and its confidence interval."""
    return ratio(found.value, found.low, found.high)


def rounds_of(found: Ratio) -> str:
    """How many pairs a ratio is of, and of how many openings, where that was written down."""
    return f"{found.rounds} of {found.openings} openings" if found.openings else str(found.rounds)


def ratio(value: float, low: float, high: float) -> str:
    """As ``interval``, from numbers."""
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def mebibytes(size: float | None) -> str:
    """Whole MiB."""
    return "n/a" if size is None else f"{size / 2**20:.0f}"
