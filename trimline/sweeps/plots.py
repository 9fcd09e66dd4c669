"""The plots of a sweep, as plotly figures in the colours of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from trimline.reporting import formats
from trimline.reporting.headline import UNRESOLVED
from trimline.reporting.plots import DENSE, LOG_RATIO, PRUNED, TEXT, block_widths, styled
from trimline.sweeps.data import Front, PointRow, Speed, SweepData
from trimline.sweeps.tables import axis_name, label, short_key

COLOURS = tuple(f"var(--group-{number})" for number in range(1, 7))
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon")
SELECTED, HEIGHT, PALE = "selected", 460, 0.4


def front_figure(data: SweepData, front: Front) -> go.Figure:
    """Perplexity against speed-up on one workload. The last trace is empty, for the point that is selected."""
    timed = [(row, speed) for row in data.models if row.perplexity and (speed := row.speed(front.axis))]
    plot = go.Figure([_line(front, timed), *_groups(data, front, timed), _knee(front, timed), _selection()])
    values = [row.perplexity.value for row, _ in timed if row.perplexity]
    plot.update_xaxes(title_text=f"{axis_name(front)}: times as fast as dense (right is better)")
    spread = max(values) > LOG_RATIO * min(values)
    plot.update_yaxes(title_text="Perplexity (lower is better)", type="log" if spread else "linear")
    styled(plot, HEIGHT, hovermode="closest")
    return plot.update_layout(legend={"x": 0, "xanchor": "left"}, margin={"t": 44})


def widths_figure(data: SweepData, row: PointRow) -> go.Figure:
    """Kept widths of one point; the page puts another's in their place."""
    return block_widths(row.blocks or data.dense.blocks)


Timed = Sequence[tuple[PointRow, Speed]]


def _line(front: Front, timed: Timed) -> go.Scatter:
    by_name = {row.name: (row, speed) for row, speed in timed}
    members = [by_name[name] for name in front.members]
    return go.Scatter(
        x=[_speed(speed) for _, speed in members],
        y=[_perplexity(row) for row, _ in members],
        mode="lines",
        line={"color": TEXT, "width": 1, "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )


def _groups(data: SweepData, front: Front, timed: Timed) -> Iterator[go.Scatter]:
    """Dense, then the points by their value of the first key that is a word, since a plot has few colours."""
    yield _scatter(data, front, "dense", [pair for pair in timed if pair[0].name == data.dense.name], DENSE, "square")
    key = next(
        (key for key, values in data.grid.items() if 1 < len(values) <= len(COLOURS) and all(isinstance(v, str) for v in values)), None
    )
    points = [pair for pair in timed if pair[0].name != data.dense.name]
    if key is None:
        yield _scatter(data, front, "points", points, PRUNED, "circle")
        return
    for number, value in enumerate(data.grid[key]):
        some = [pair for pair in points if pair[0].settings[key] == value]
        if some:
            yield _scatter(data, front, f"{short_key(key)} {value}", some, COLOURS[number], SYMBOLS[number])


def _scatter(data: SweepData, front: Front, name: str, pairs: Timed, colour: str, symbol: str) -> go.Scatter:
    """Points on the front are filled, the others hollow."""
    kept = set(front.members)
    return go.Scatter(
        x=[_speed(speed) for _, speed in pairs],
        y=[_perplexity(row) for row, _ in pairs],
        error_x=_whiskers([speed.speedup for _, speed in pairs], colour),
        error_y=_whiskers([row.perplexity for row, _ in pairs], colour),
        mode="markers",
        name=name,
        marker={
            "size": 11,
            "color": colour,
            "line": {"color": colour, "width": 1.5},
            "opacity": [PALE if speed.verdict.startswith(UNRESOLVED) else 1.0 for _, speed in pairs],
            "symbol": [symbol if row.name in kept else f"{symbol}-open" for row, _ in pairs],
        },
        customdata=[row.name for row, _ in pairs],
        hovertext=[_hover(data, row, speed) for row, speed in pairs],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )


def _knee(front: Front, timed: Timed) -> go.Scatter:
    found = [(row, speed) for row, speed in timed if row.name == front.knee]
    return go.Scatter(
        x=[_speed(speed) for _, speed in found],
        y=[_perplexity(row) for row, _ in found],
        mode="markers+text",
        text=["knee"] * len(found),
        textposition="bottom right",
        textfont={"color": "var(--good)", "size": 13},
        marker={"size": 21, "symbol": "circle-open", "color": "var(--good)", "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )


def _selection() -> go.Scatter:
    marker = {"size": 28, "symbol": "circle-open", "color": TEXT, "line": {"width": 1.5}}
    return go.Scatter(x=[], y=[], mode="markers", marker=marker, name=SELECTED, hoverinfo="skip", showlegend=False, cliponaxis=False)


def _whiskers(measures: Sequence[Any], colour: str) -> dict[str, Any]:
    known = [
        (m.value, m.low if m.low is not None else m.value, m.high if m.high is not None else m.value) if m else (0, 0, 0) for m in measures
    ]
    above, below = [high - value for value, _, high in known], [value - low for value, low, _ in known]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1, "width": 3}


def _hover(data: SweepData, row: PointRow, speed: Speed) -> str:
    interval = formats.interval(row.perplexity)
    said = [f"<b>{_plain(label(data, row))}</b>", f"perplexity {formats.perplexity(row.perplexity)} {interval}".rstrip()]
    if speed.speedup:
        said.append(f"{formats.ratio(speed.speedup.value)} as fast as dense {formats.interval(speed.speedup)}")
    if speed.verdict.startswith(UNRESOLVED):
        said.append(UNRESOLVED)
    return "<br>".join([*said, formats.duration(speed.latency), f"{formats.count(row.parameters)} parameters"])


def _plain(text: str) -> str:
    """plotly reads tags in its texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _speed(speed: Speed) -> float:
    return speed.speedup.value if speed.speedup else 1.0


def _perplexity(row: PointRow) -> float | None:
    return row.perplexity.value if row.perplexity else None
