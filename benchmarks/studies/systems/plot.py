"""The results command's plot as an SVG file: perplexity against decode speed-up, a line per system."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from benchmarks.studies.systems.systems import ALL_OURS, OURS, SYSTEMS
from benchmarks.studies.systems.tables import Speed, named

WIDTH, HEIGHT = 880, 520
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 20, 52
HIGHEST = 20.0  # perplexity over dense's; what lies higher is drawn at the edge
# Okabe and Ito's palette, which colour-blind readers can tell apart; ours in black.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#8c6d31", "#7b4173", "#999999")
STEPS = (1, 1.5, 2, 3, 4, 5, 7)


@dataclass(frozen=True)
class PlotPoint:
    """One row of the table: decode speed-up, and its perplexity over dense's."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Stroke:
    """How a line is drawn."""

    colour: str
    width: float = 1.6
    dashes: str = "none"

    def __str__(self) -> str:
        return f'stroke="{self.colour}" stroke-width="{self.width}" stroke-dasharray="{self.dashes}"'


OUR_STROKES = {  # by title
    system.title: Stroke("#000000", 3.0, "none" if system.name == OURS else "7 4") for system in SYSTEMS if system.name in ALL_OURS
}


@dataclass(frozen=True)
class Axes:
    """From values to places: x linear, y logarithmic."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = math.log(min(value, self.high) / self.low) / math.log(self.high / self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def plot(records: Sequence[Mapping[str, Any]], speed: Speed) -> str | None:
    """The SVG document; None where nothing was timed."""
    dense = next((record["perplexity"]["perplexity"] for record in records if record["system"] == "dense" and "perplexity" in record), None)
    lines = lines_of(records, speed)
    if dense is None or not lines:
        return None
    points = [point for line in lines.values() for point in line]
    highest = min(HIGHEST * dense, 1.15 * max(point.y for point in points))
    slowest, fastest = min(1.0, *(point.x for point in points)), max(point.x for point in points)
    axes = Axes(slowest - 0.03, fastest + 0.05, 0.9 * dense, max(highest, 1.2 * dense))
    return "\n".join(_document(axes, dense, lines)) + "\n"


def lines_of(records: Sequence[Mapping[str, Any]], speed: Speed) -> dict[str, list[PlotPoint]]:
    """Every system's timed rows, in the order of what they remove."""
    lines: dict[str, list[PlotPoint]] = {}
    for record in records:
        if record["name"] in speed and not record.get("failure"):
            x, y = speed[record["name"]]["decode"].speedup.value, record["perplexity"]["perplexity"]
            lines.setdefault(record["title"], []).append(PlotPoint(x, y, f"{named(record)}: {y:.4g} at {x:.2f} ×"))
    return lines


def _document(axes: Axes, dense: float, lines: Mapping[str, list[PlotPoint]]) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield from _grid(axes)
    yield _label(axes.x(1.0) + 11, axes.y(dense) + 4, "dense", "start")
    yield f'<rect x="{axes.x(1.0) - 5:.1f}" y="{axes.y(dense) - 5:.1f}" width="10" height="10" fill="#444444"/>'
    colours = iter(COLOURS * (1 + len(lines) // len(COLOURS)))
    for place, (title, points) in enumerate(lines.items()):
        yield from _line(axes, points, OUR_STROKES.get(title) or Stroke(next(colours)), title, place)
    if any(point.y > axes.high for points in lines.values() for point in points):
        yield _label(WIDTH - RIGHT + 14, TOP + 26 + 22 * len(lines), f"▲ above {axes.high:.0f}", "start")
    yield "</svg>"


def _grid(axes: Axes) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in _perplexities(axes):
        y = axes.y(tick)
        yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#dddddd"/>' + _label(LEFT - 8, y + 4, f"{tick:g}", "end")
    for tick in _speeds(axes):
        x = axes.x(tick)
        yield f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#eeeeee"/>' + _label(x, bottom + 18, f"{tick:g}", "middle")
    yield _label((LEFT + right) / 2, HEIGHT - 12, "decode speed-up over dense, measured", "middle")
    middle = (TOP + bottom) / 2
    yield f'<g transform="rotate(-90 16 {middle})">' + _label(16, middle, "perplexity", "middle") + "</g>"


def _line(axes: Axes, points: Sequence[PlotPoint], stroke: Stroke, title: str, place: int) -> Iterator[str]:
    places = [(axes.x(point.x), axes.y(point.y), point) for point in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    yield f'<path d="M{path}" fill="none" {stroke}/>'
    for x, y, point in places:
        beyond = point.y > axes.high
        shape = f'<path d="M{x - 5:.1f} {y + 8:.1f}h10l-5 -9z"' if beyond else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"'
        yield f'{shape} fill="{stroke.colour}"><title>{escape(point.text)}</title>{"</path>" if beyond else "</circle>"}'
    x, y = WIDTH - RIGHT + 14, TOP + 14 + 22 * place
    yield f'<path d="M{x} {y}h20" {stroke}/>' + _label(x + 26, y + 4, title, "start")


def _perplexities(axes: Axes) -> list[float]:
    powers = range(math.floor(math.log10(axes.low)), math.ceil(math.log10(axes.high)) + 1)
    return [step * 10**power for power in powers for step in STEPS if axes.low <= step * 10**power <= axes.high]


def _speeds(axes: Axes) -> list[float]:
    step = 0.1 if axes.right - axes.left < 1.2 else 0.25
    return [round(n * step, 2) for n in range(math.ceil(axes.left / step), math.floor(axes.right / step) + 1)]


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
