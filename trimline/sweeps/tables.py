"""The tables of a sweep, before they have a format: what HTML, Markdown and the terminal all show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimline.reporting import formats, metrics
from trimline.reporting.content import Cell, Column, Table, outcome_cell
from trimline.reporting.data import TaskRow
from trimline.reporting.headline import UNRESOLVED
from trimline.reporting.tasks import figure, metric_title
from trimline.sweeps.data import Front, PointRow, Speed, SweepData

KNEE, FRONT = "knee", "front"
SPEEDUP = (
    "of every opening of the models the median over its rounds of (time of dense / time of the point in that round), of these the "
    "geometric mean; brackets: 95 % confidence interval, from openings"
)
PERPLEXITY = (
    "exp(mean negative log-likelihood per predicted token); brackets: 95 % interval from the differences to dense, window by window"
)
TARGET = "met where the whole 95 % interval of the speed shown is within 3 % of what was asked for"
TASK = "of the lm-eval harness, by the checkpoint; behind ± one standard error"


@dataclass(frozen=True)
class Sortable:
    """A cell, and what it is sorted by; None sorts last either way."""

    cell: Cell
    value: float | str | None


@dataclass(frozen=True)
class PointLine:
    """One row of the table of points."""

    name: str
    cells: tuple[Sortable, ...]


def columns(data: SweepData) -> tuple[Column, ...]:
    """Grid keys, perplexity, speed-up of every workload, whether that was asked for, what the point is on the headline's front, tasks, and sizes."""
    return (
        *(Column(short_key(key)) for key in data.grid),
        Column("Perplexity", True, PERPLEXITY),
        *(Column(f"{axis_name(front)} speed-up", True, SPEEDUP) for front in data.fronts),
        *([Column("Target", formula=TARGET)] if _has_targets(data) else []),
        Column("On the front"),
        *(Column(task_name(task), True, TASK) for task in data.tasks),
        Column("Parameters", True, metrics.PARAMETERS),
        *(Column(f"{axis_name(front)} latency", True, metrics.LATENCY) for front in data.fronts),
    )


def lines(data: SweepData) -> Iterator[PointLine]:
    """Dense, then every point that has a model, in the grid's order."""
    for row in data.models:
        yield PointLine(row.name, tuple(_cells(data, row)))


def points_table(data: SweepData) -> Table:
    """The same without sorting."""
    return Table(columns(data), tuple(tuple(part.cell for part in line.cells) for line in lines(data)))


def short_table(data: SweepData) -> Table:
    """Without tasks, sizes and latencies, which a terminal has no room for."""
    table, kept = points_table(data), len(data.grid) + 2 + len(data.fronts) + _has_targets(data)
    return Table(table.columns[:kept], tuple(row[:kept] for row in table.rows))


def unresolved_points(data: SweepData, front: Front) -> tuple[PointRow, ...]:
    """Points whose run's control did not hold on a workload."""
    return tuple(row for row in data.models if (speed := row.speed(front.axis)) and speed.verdict.startswith(UNRESOLVED))


def failures_table(data: SweepData) -> Table | None:
    """Points without a model or without a speed, and why."""
    rows = tuple((Cell(label(data, row)), Cell(row.failure or f"not timed: {row.untimed}", "bad")) for row in data.failed)
    return Table((Column("Point"), Column("Why")), rows) if rows else None


def axis_name(front: Front) -> str:
    """``Decode 128/17``."""
    return f"{front.phase.capitalize()} {front.workload}"


def task_name(task: TaskRow) -> str:
    """``opposites, acc ↑``."""
    return f"{task.task}, {metric_title(task)}"


def short_key(key: str) -> str:
    """A path without the place of the first step."""
    return key.removeprefix("prune.steps.0.")


def label(data: SweepData, row: PointRow) -> str:
    """What people call a point: the grid's values."""
    if not row.settings:
        return row.name
    shown = [(short_key(key), shown_value(value)) for key, value in row.settings.items()]
    return ", ".join(
        value if isinstance(row.settings[key], str) else f"{name} {value}" for key, (name, value) in zip(row.settings, shown, strict=True)
    )


def shown_value(value: Any) -> str:
    """A grid's value as people write it."""
    return value if isinstance(value, str) else json.dumps(value)


def standing(front: Front, row: PointRow) -> str:
    """``knee``, ``front``, or nothing."""
    return KNEE if row.name == front.knee else FRONT if row.name in front.members else ""


def _cells(data: SweepData, row: PointRow) -> Iterator[Sortable]:
    for number, key in enumerate(data.grid):
        value = row.settings.get(key)
        shown = shown_value(value) if row.settings else (row.name if number == 0 else "")
        yield Sortable(Cell(shown), value if isinstance(value, (int, float)) and not isinstance(value, bool) else shown or None)
    interval = formats.interval(row.perplexity)
    yield Sortable(Cell(formats.perplexity(row.perplexity), detail=interval), row.perplexity.value if row.perplexity else None)
    speeds = [row.speed(front.axis) for front in data.fronts]
    for speed in speeds:
        yield Sortable(_speedup(speed), speed.speedup.value if speed and speed.speedup else 1.0 if speed else None)
    if _has_targets(data):
        yield _target(row)
    what = standing(data.fronts[0], row) if data.fronts else ""
    yield Sortable(Cell(what, "good" if what == KNEE else "plain"), {KNEE: 0, FRONT: 1}.get(what))
    yield from _task_cells(data, row)
    yield Sortable(Cell(formats.count(row.parameters)), row.parameters)
    for speed in speeds:
        yield Sortable(Cell(formats.duration(speed.latency if speed else None)), speed.latency if speed else None)


def _task_cells(data: SweepData, row: PointRow) -> Iterator[Sortable]:
    own = {task_name(task): task.pruned for task in row.tasks}
    for task in data.tasks:
        shown = task.dense if row is data.dense else own.get(task_name(task))
        yield Sortable(figure(shown), shown.value) if shown else Sortable(Cell(formats.NONE, "quiet"), None)


def _has_targets(data: SweepData) -> bool:
    return any(row.targets for row in data.points)


def _target(row: PointRow) -> Sortable:
    """The first outcome that is not met stands for all."""
    if not row.targets:
        return Sortable(Cell(formats.NONE, "quiet"), None)
    shown = next((target for target in row.targets if target.outcome != "met"), row.targets[0])
    return Sortable(outcome_cell(shown.outcome, shown.asked), shown.outcome)


def _speedup(speed: Speed | None) -> Cell:
    if speed is None:
        return Cell(formats.NONE, "quiet")
    if speed.speedup is None:
        return Cell("1", "quiet")
    doubt = f" {UNRESOLVED}" if speed.verdict.startswith(UNRESOLVED) else ""
    return Cell(formats.ratio(speed.speedup.value), "quiet" if doubt else "plain", detail=f"{formats.interval(speed.speedup)}{doubt}")
