"""The report's plots as SVG, for places that run no scripts: what the page draws by plotly, from the same figures.

It knows what ``trimline.reporting.plots`` uses: bars over each other, points, lines, texts, lying boxes, heat maps, panels above each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from trimline.reporting.axes import Scale, finite, scale
from trimline.reporting.plots import DENSE, GHOST, GRID, PRUNED, TEXT

WIDTH = 760
WHISKER = 1.5  # interquartile ranges that a whisker reaches at most
# Of the page's variables, in shades that a light notebook and a dark one both show.
COLOURS = {DENSE: "#7d8ca3", PRUNED: "#2f7fd0", GHOST: "#b4bdca", "var(--bad)": "#d0453b", TEXT: "currentColor", GRID: "currentColor"}
ANCHORS = {"right": "start", "center": "middle", "left": "end"}  # a text that stands to the right begins at its point

Trace = Mapping[str, Any]


def still(figure: go.Figure, label: str) -> str:
    """An ``<svg>`` element of a figure.

    Args:
        figure: of ``trimline.reporting.plots``.
        label: what it shows, for who cannot see it.
    """
    drawn = figure.to_dict()
    layout, height = drawn["layout"], drawn["layout"]["height"]
    parts = [part for panel in _panels(layout, drawn["data"]) for part in _panel(layout, *panel)]
    parts += [*_headings(layout), *_legend(layout, drawn["data"])]
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12" style="width: 100%; max-width: {WIDTH}px">', *parts, "</svg>"])


def _panels(layout: Mapping[str, Any], traces: Sequence[Trace]) -> Iterator[tuple[Scale, Scale, list[Trace]]]:
    for number in dict.fromkeys(trace.get("xaxis", "x")[1:] for trace in traces):
        own = [trace for trace in traces if trace.get("xaxis", "x")[1:] == number]
        across, up = layout.get(f"xaxis{number}", {}), layout.get(f"yaxis{number}", {})
        shared = {f"x{number}", across.get("matches", f"x{number}")}
        along = [trace for trace in traces if trace.get("xaxis", "x") in shared]
        left, right, top, bottom = _frame(layout, up.get("domain", (0.0, 1.0)))
        yield scale(across, along, "x", (left, right)), scale(up, own, "y", (bottom, top)), own


def _frame(layout: Mapping[str, Any], domain: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a panel, in pixels."""
    margin, height = layout["margin"], layout["height"]
    high = height - margin["t"] - margin["b"]
    return margin["l"], WIDTH - margin["r"], margin["t"] + (1 - domain[1]) * high, margin["t"] + (1 - domain[0]) * high


def _panel(layout: Mapping[str, Any], x: Scale, y: Scale, traces: Sequence[Trace]) -> Iterator[str]:
    yield from _grid(x, y)
    for place, trace in enumerate(traces):
        if trace["type"] == "bar":
            yield from _bars(trace, x, y, layout["bargap"])
        elif trace["type"] == "box":
            yield from _box(trace, x, y, place)
        elif trace["type"] == "heatmap":
            yield from _heat(trace, x, y)
        else:
            yield from _scatter(trace, x, y)


def _grid(x: Scale, y: Scale) -> Iterator[str]:
    for place, text in y.ticks():
        if y.grid:
            yield f'<path d="M{x.start} {place:.1f}H{x.end}" stroke="currentColor" stroke-opacity="0.15"/>'
        yield _text(x.start - 8, place + 4, text, "end")
    for place, text in x.ticks():
        if x.grid:
            yield f'<path d="M{place:.1f} {y.end:.1f}V{y.start:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
        if x.labels:
            yield _text(place, y.start + 16, text, "middle")
    if x.title:
        yield _text((x.start + x.end) / 2, y.start + 36, x.title, "middle")
    if y.title:
        middle = (y.start + y.end) / 2
        yield f'<g transform="rotate(-90 14 {middle:.1f})">{_text(14, middle, y.title, "middle")}</g>'


def _bars(trace: Trace, x: Scale, y: Scale, gap: float) -> Iterator[str]:
    half = (1 - gap) / 2
    for number, value in zip(trace["x"], trace["y"], strict=True):
        if finite((value,)):
            left, right, top = x.place(number - half), x.place(number + half), y.place(value)
            shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{y.place(0) - top:.1f}"'
            yield f'<rect {shape} fill="{_colour(trace["marker"]["color"])}"><title>{_number(x, number)}: {value:,.4g}</title></rect>'


def _heat(trace: Trace, x: Scale, y: Scale) -> Iterator[str]:
    """A square per value, the denser the larger it is; what the densest stands for is written above."""
    most = max(finite(value for row in trace["z"] for value in row), default=0.0)
    wide, high = abs(x.place(1) - x.place(0)), abs(y.place(1) - y.place(0))
    colour = _colour(trace["colorscale"][-1][1])
    for up, row in zip(trace["y"], trace["z"], strict=True):
        for across, value in zip(trace["x"], row, strict=True):
            if value is None:
                continue
            shape = f'x="{x.place(across) - wide / 2:.1f}" y="{y.place(up) - high / 2:.1f}" width="{wide:.1f}" height="{high:.1f}"'
            named = f"{_number(y, up)}, {_number(x, across)}: {value:.2%}"
            yield f'<rect {shape} fill="{colour}" fill-opacity="{value / most if most else 0:.3f}"><title>{named}</title></rect>'
    yield _text(x.end, min(y.start, y.end) - 6, f"densest: {most:.1%}", "end")


def _box(trace: Trace, x: Scale, y: Scale, place: int) -> Iterator[str]:
    values = np.array(finite(trace["x"]))
    if not len(values):
        return
    colour, middle = _colour(trace["line"]["color"]), y.place(place)
    half = abs(y.place(0.3) - y.place(0.0))
    for number, value in enumerate(values):
        off = (number * 0.618034 % 1 - 0.5) * half  # spread as evenly as any other order, and the same every time
        yield f'<circle cx="{x.place(value):.1f}" cy="{middle + off:.1f}" r="1.5" fill="{colour}" fill-opacity="0.45"/>'
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    reach = WHISKER * (third - first)
    inner = values[(values >= first - reach) & (values <= third + reach)]
    low, left, line, right, high = (x.place(float(value)) for value in (inner.min(), first, median, third, inner.max()))
    top, bottom = middle - half, middle + half
    outline = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}ZM{line:.1f} {top:.1f}V{bottom:.1f}"
    yield f'<path d="{outline}M{low:.1f} {middle:.1f}H{left:.1f}M{right:.1f} {middle:.1f}H{high:.1f}" fill="none" stroke="{colour}"/>'


def _scatter(trace: Trace, x: Scale, y: Scale) -> Iterator[str]:
    pairs = zip(trace["x"], trace["y"], strict=True)
    points = [(n, x.place(a), y.place(b)) for n, (a, b) in enumerate(pairs) if len(finite((a, b))) == 2]
    mode = trace["mode"]
    if "lines" in mode and points:
        path = "L".join(f"{across:.1f} {up:.1f}" for _, across, up in points)
        yield f'<path d="M{path}" fill="none" stroke="{_colour(trace["line"]["color"])}" stroke-width="1.5"/>'
    for number, across, up in points:
        if "markers" in mode:
            yield _marker(trace["marker"], number, across, up)
        if "text" in mode:
            yield _text(across, up - 11, trace["text"][number], ANCHORS[trace["textposition"][number].split()[-1]])


def _marker(marker: Trace, number: int, x: float, y: float) -> str:
    colour = _colour(marker["color"] if isinstance(marker["color"], str) else marker["color"][number])
    size = marker["size"]
    half = (size[number] if isinstance(size, list | tuple) else size) / 2
    if marker.get("symbol") == "x":
        cross = f"M{x - half:.1f} {y - half:.1f}l{2 * half} {2 * half}m0 {-2 * half}l{-2 * half} {2 * half}"
        return f'<path d="{cross}" stroke="{colour}" stroke-width="2.5"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{half}" fill="{colour}"/>'


def _headings(layout: Mapping[str, Any]) -> Iterator[str]:
    for note in layout.get("annotations", ()):
        left, _, top, _ = _frame(layout, (0.0, note["y"]))
        yield _text(left, top - 5, note["text"], "start")


def _legend(layout: Mapping[str, Any], traces: Sequence[Trace]) -> Iterator[str]:
    right = WIDTH - layout["margin"]["r"]
    for trace in reversed([trace for trace in traces if layout.get("showlegend", True) and trace.get("showlegend")]):
        yield _text(right, 14, trace["name"], "end")
        right -= 9 + 7 * len(trace["name"])
        yield f'<rect x="{right - 5}" y="4" width="11" height="11" fill="{_colour(trace["marker"]["color"])}"/>'
        right -= 18


def _colour(named: str) -> str:
    return COLOURS[named]


def _number(axis: Scale, value: float) -> str:
    return escape(f"{axis.title} {value:g}".strip())


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'
