"""The plots, as plotly figures. Colours are names of the page's CSS variables, so that light and dark both suit."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trimline.reporting.accuracy.positions import part_ends
from trimline.reporting.data import BlockRow, ReportData, WorkloadRow

DENSE, PRUNED, GHOST = "var(--dense)", "var(--pruned)", "var(--ghost)"
TEXT, GRID = "var(--text)", "var(--line)"
LOG_RATIO = 5.0  # a perplexity axis that spans more than this is logarithmic


def figure(key: str, data: ReportData) -> go.Figure:
    """The figure for a ``content.Plot`` of that key."""
    draw = {
        "widths": _widths,
        "importance": _importance,
        "latency": _latency,
        "tradeoff": _tradeoff,
        "losses": _losses,
        "positions": _positions,
        "expert-curve": _expert_curve,
        "routed": _routed,
    }[key]
    return draw(data)


def _widths(data: ReportData) -> go.Figure:
    return block_widths(data.blocks)


def block_widths(blocks: tuple[BlockRow, ...]) -> go.Figure:
    """FFN channels, or of a mixture experts, above KV groups: per panel dense, kept and absent, in this order."""
    plot = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.09)
    mixture = any(block.dense_experts for block in blocks)
    above = ("Experts", "dense_experts", "experts") if mixture else ("FFN channels", "dense_ffn", "ffn")
    panels = (above, ("KV groups", "dense_kv_groups", "kv_groups"))
    for row, (title, dense, kept) in enumerate(panels, 1):
        plot.add_trace(_bars(blocks, dense, "dense", GHOST, shown=row == 1), row, 1)
        plot.add_trace(_bars(blocks, kept, "kept", PRUNED, shown=row == 1), row, 1)
        plot.add_trace(_absences(blocks, kept, shown=row == 1), row, 1)
        plot.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    plot.update_xaxes(title_text="Block", row=2, col=1)
    largest = max(block.dense_kv_groups for block in blocks)
    plot.update_yaxes(dtick=max(1, largest // 4), row=2, col=1)
    return styled(plot, 440, barmode="overlay")


def _bars(blocks: tuple[BlockRow, ...], field: str, name: str, colour: str, shown: bool) -> go.Bar:
    numbers = [block.number for block in blocks]
    values = [getattr(block, field) for block in blocks]
    hover = "block %{x}: %{y:,}<extra>" + name + "</extra>"
    return go.Bar(x=numbers, y=values, name=name, marker_color=colour, legendgroup=name, showlegend=shown, hovertemplate=hover)


def _absences(blocks: tuple[BlockRow, ...], field: str, shown: bool) -> go.Scatter:
    gone = [block.number for block in blocks if not getattr(block, field)]
    return go.Scatter(
        x=gone,
        y=[0] * len(gone),
        name="absent",
        mode="markers",
        marker={"symbol": "x", "size": 9, "color": "var(--bad)"},
        legendgroup="absent",
        showlegend=shown and bool(gone),
        cliponaxis=False,
        hovertemplate="block %{x}: absent<extra></extra>",
    )


def _importance(data: ReportData) -> go.Figure:
    blocks = [block for block in data.blocks if block.importance is not None]
    bar = go.Bar(
        x=[block.number for block in blocks],
        y=[block.importance for block in blocks],
        marker_color=PRUNED,
        hovertemplate="block %{x}: %{y:.4g}<extra></extra>",
    )
    plot = go.Figure(bar)
    plot.update_xaxes(title_text="Block")
    plot.update_yaxes(title_text="Importance", rangemode="tozero")
    return styled(plot, 300, showlegend=False)


def _latency(data: ReportData) -> go.Figure:
    timed = [workload for workload in data.workloads if workload.dense_samples and workload.pruned_samples]
    titles = [f"{workload.phase.capitalize()}: {workload.name}" for workload in timed]
    gap = 0.45 / len(timed)
    plot = make_subplots(rows=len(timed), cols=1, subplot_titles=titles, vertical_spacing=gap if len(timed) > 1 else 0)
    for row, workload in enumerate(timed, 1):
        for trace in _boxes(workload):
            plot.add_trace(trace, row, 1)
        plot.update_xaxes(title_text="Latency per call (ms)", row=row, col=1)
    plot.update_yaxes(showgrid=False)
    plot.update_annotations(x=0, xanchor="left", font_size=13, font_color=TEXT)
    return styled(plot, 60 + 190 * len(timed), showlegend=False, boxgap=0.35)


def _boxes(workload: WorkloadRow) -> tuple[go.Box, go.Box]:
    def box(name: str, samples: tuple[float, ...], colour: str) -> go.Box:
        values = [seconds * 1e3 for seconds in samples]
        points: dict[str, Any] = {"boxpoints": "all", "jitter": 0.6, "pointpos": 0, "marker": {"size": 3, "opacity": 0.45}}
        return go.Box(x=values, name=name, line={"width": 1.5, "color": colour}, fillcolor="rgba(0,0,0,0)", hoverinfo="x", **points)

    # The first trace is drawn at the bottom, and people read dense first.
    return box("pruned", workload.pruned_samples, PRUNED), box("dense", workload.dense_samples, DENSE)


def _tradeoff(data: ReportData) -> go.Figure:
    points = sorted(data.decode_points, key=lambda point: point.tokens_per_second)
    dense = data.model("dense")
    scatter = go.Scatter(
        x=[point.tokens_per_second for point in points],
        y=[point.perplexity for point in points],
        text=[point.name for point in points],
        mode="markers+text",
        textposition=[_side(place, len(points)) for place in range(len(points))],
        marker={"size": 13, "color": [DENSE if dense and point.name == dense.name else PRUNED for point in points]},
        cliponaxis=False,
        hovertemplate="%{text}<br>%{x:.1f} tokens/s, perplexity %{y:.2f}<extra></extra>",
    )
    plot = go.Figure(scatter)
    values = [point.perplexity for point in points]
    plot.update_xaxes(title_text="Decode tokens/s (right is better)")
    plot.update_yaxes(title_text="Perplexity (lower is better)", type="log" if max(values) > LOG_RATIO * min(values) else "linear")
    return styled(plot, 340, showlegend=False)


def _losses(data: ReportData) -> go.Figure:
    points = data.recovery.losses if data.recovery else ()
    hover = "step %{x}: %{y:.3f}<extra></extra>"
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    plot = go.Figure(go.Scatter(x=steps, y=losses, name="training", mode="lines", line_color=PRUNED, hovertemplate=hover))
    apart = data.recovery.held_out if data.recovery else ()
    if apart:
        line = {"x": [step for step, _ in apart], "y": [loss for _, loss in apart], "name": "held out", "mode": "lines+markers"}
        plot.add_trace(go.Scatter(**line, line_color=DENSE, hovertemplate=hover))
    plot.update_xaxes(title_text="Optimiser step")
    plot.update_yaxes(title_text="Loss (nats per token)")
    return styled(plot, 300, showlegend=bool(apart))


def _positions(data: ReportData) -> go.Figure:
    """One panel per text that has losses by position."""
    texts = [(row.name, row.positions) for row in data.by_text if row.positions]
    gap = 0.45 / len(texts)
    plot = make_subplots(rows=len(texts), cols=1, subplot_titles=[name for name, _ in texts], vertical_spacing=gap if len(texts) > 1 else 0)
    for row, (_, found) in enumerate(texts, 1):
        ends = part_ends(found.window, len(found.dense))
        for name, values, colour in (("dense", found.dense, DENSE), ("pruned", found.pruned, PRUNED)):
            line = {"x": ends, "y": values, "name": name, "mode": "lines+markers", "line_color": colour, "legendgroup": name}
            hover = "up to token %{x}: %{y:.3f}<extra>" + name + "</extra>"
            plot.add_trace(go.Scatter(**line, marker={"color": colour, "size": 6}, showlegend=row == 1, hovertemplate=hover), row, 1)
        plot.update_xaxes(title_text="Token of the window, end of each eighth", row=row, col=1)
        plot.update_yaxes(title_text="Loss (nats)", row=row, col=1)
    plot.update_annotations(x=0, xanchor="left", font_size=13, font_color=TEXT)
    return styled(plot, 80 + 200 * len(texts))


def _expert_curve(data: ReportData) -> go.Figure:
    """Perplexity above divergence from the dense model, over how many experts stay; this run's own count is marked."""
    points = sorted(data.expert_curve.points if data.expert_curve else (), key=lambda point: point.kept)
    panels = [("Perplexity", [point.perplexity.value for point in points])]
    if all(point.divergence is not None for point in points):
        panels.append(("KL to dense (nats)", [float(point.divergence or 0.0) for point in points]))
    plot = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.09)
    kept, colours = [point.kept for point in points], [PRUNED if point.planned else DENSE for point in points]
    for row, (title, values) in enumerate(panels, 1):
        marker = {"size": [13 if point.planned else 8 for point in points], "color": colours}
        hover = "%{x} experts: %{y:.4g}<extra></extra>"
        line = go.Scatter(x=kept, y=values, name=title, mode="lines+markers", line_color=DENSE, marker=marker, hovertemplate=hover)
        plot.add_trace(line, row, 1)
        spans = title == "Perplexity" and max(values) > LOG_RATIO * min(values)
        plot.update_yaxes(title_text=title, type="log" if spans else "linear", row=row, col=1)
    plot.update_xaxes(title_text="Experts in every block", row=len(panels), col=1)
    return styled(plot, 210 * len(panels) + 60, showlegend=False)


def _routed(data: ReportData) -> go.Figure:
    """Share of what was routed, a row per block and a column per expert; a cross where the expert went."""
    widest = max(len(row.shares) for row in data.routed)
    heat = go.Heatmap(
        x=list(range(widest)),
        y=[row.block for row in data.routed],
        z=[[*row.shares, *[None] * (widest - len(row.shares))] for row in data.routed],
        zmin=0,
        colorscale=[[0, GRID], [1, PRUNED]],
        colorbar={"title": {"text": "share"}, "tickformat": ".0%", "thickness": 12},
        hovertemplate="block %{y}, expert %{x}: %{z:.2%}<extra></extra>",
    )
    gone = [(row.block, expert) for row in data.routed for expert in range(len(row.shares)) if expert not in row.kept]
    marker = {"symbol": "x", "size": 7 if widest <= 32 else 4, "color": "var(--bad)"}
    crosses = go.Scatter(
        x=[expert for _, expert in gone],
        y=[block for block, _ in gone],
        name="removed",
        mode="markers",
        marker=marker,
        hovertemplate="block %{y}, expert %{x}: removed<extra></extra>",
    )
    plot = go.Figure([heat, crosses])
    plot.update_xaxes(title_text="Expert", showgrid=False)
    plot.update_yaxes(title_text="Block", showgrid=False, dtick=max(1, len(data.routed) // 12))
    return styled(plot, 120 + max(160, 14 * len(data.routed)), showlegend=False)


def _side(place: int, points: int) -> str:
    """Labels of the outermost points turn inwards, or a phone would cut them off."""
    if place == 0:
        return "top right"
    return "top left" if place == points - 1 else "top center"


def styled(plot: go.Figure, height: int, **layout: Any) -> go.Figure:
    """What all plots look alike in."""
    plot.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 28, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "size": 12},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"font_size": 12},
        bargap=0.25,
        **layout,
    )
    plot.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    plot.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID)
    return plot
