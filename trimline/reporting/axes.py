"""One axis of a still plot: from values to pixels, and where its ticks stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROOM = 0.05  # of an axis, beyond its outermost points
WANTED_TICKS = 6
STEPS = (1.0, 2.0, 5.0, 10.0)  # times a power of ten: how far ticks may stand apart


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        start, end: pixels of ``low`` and ``high``.
        low, high: ends of the axis, in its own unit.
        logarithmic: both ends are above 0 then.
        categories: names in the place of numbers; the first stands at 0.
        step: between two ticks; None where that is free.
        title: what the axis shows.
        labels, grid: whether ticks have numbers, and lines.
    """

    start: float
    end: float
    low: float
    high: float
    logarithmic: bool = False
    categories: tuple[str, ...] = ()
    step: float | None = None
    title: str = ""
    labels: bool = True
    grid: bool = True

    def place(self, value: float) -> float:
        """Pixels of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log10(number) for number in (value, low, high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """(pixels, text) of every tick."""
        if self.categories:
            yield from ((self.place(number), name) for number, name in enumerate(self.categories))
        elif self.logarithmic:
            yield from ((self.place(value), f"{value:,g}") for value in _decades(self.low, self.high))
        else:
            step = self.step or _round_step((self.high - self.low) / WANTED_TICKS)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            yield from ((self.place(number * step), _number(number * step, step)) for number in range(first, last + 1))


def scale(axis: Mapping[str, Any], traces: Sequence[Mapping[str, Any]], letter: str, ends: tuple[float, float]) -> Scale:
    """The axis of a plotly layout, with room for what stands on it.

    Args:
        axis: of the layout.
        traces: that stand on it, as plain values.
        letter: ``x`` or ``y``.
        ends: pixels of its ends.
    """
    about = {
        "step": axis.get("dtick"),
        "title": axis.get("title", {}).get("text", ""),
        "labels": axis.get("showticklabels", True),
        "grid": axis.get("showgrid", True),
    }
    if letter == "y" and any(trace["type"] == "box" for trace in traces):
        names = tuple(dict.fromkeys(trace["name"] for trace in traces))
        return Scale(*ends, -0.5, len(names) - 0.5, categories=names, **about)
    values = [value for trace in traces for value in finite(trace[letter])]
    if values and any(trace["type"] == "heatmap" for trace in traces):  # squares around whole numbers
        return Scale(*ends, min(values) - 0.5, max(values) + 0.5, **about)
    if axis.get("type") == "log" and values:
        return Scale(*ends, min(values) / 1.2, max(values) * 1.2, logarithmic=True, **about)
    low, high = _ends(values, bars=any(trace["type"] == "bar" for trace in traces), along=letter == "x")
    return Scale(*ends, min(low, 0.0) if axis.get("rangemode") == "tozero" else low, high, **about)


def finite(values: Iterable[float | None]) -> list[float]:
    """Those that a plot can show."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _ends(values: Sequence[float], *, bars: bool, along: bool) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if bars and along:
        return low - 0.5, high + 0.5
    room = ROOM * (high - low) or abs(high) * ROOM or 1.0
    return (min(low, 0.0) if bars else low - room), high + room


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in STEPS if power * step >= least * (1 - 1e-9))


def _number(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{digits}f}"


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for step in STEPS[:-1] if low <= (value := step * 10.0**power) <= high]
