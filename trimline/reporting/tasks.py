"""What else was asked of both models: tasks of the lm-eval harness, and every text that evaluates by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trimline.reporting import formats, metrics
from trimline.reporting.accuracy.flips import COLUMN, flips_cell, not_counted
from trimline.reporting.content import Cell, Column, Item, Note, Table, Tone
from trimline.reporting.data import ByText, Measure, TaskRow

RESOLVED = 1.96  # standard errors that a difference has to be away from nothing
FAR, TIMES = 0.1, 1.5  # nats more, and times as many, than on the headline's text
DIVERGENCE = "mean over predictions of KL(dense ‖ pruned), nats"
SAME_BEST = "share of positions at which both models hold the same token for the likeliest"
DIFFERENCE = "pruned minus dense; its standard error is that of the differences document by document"


def task_items(tasks: Sequence[TaskRow]) -> Iterator[Item]:
    """The table and how to read it."""
    graph = [Column("Pruned, ONNX", True)] * any(task.onnx for task in tasks)
    figures = (Column("Dense", True), Column("Pruned", True), *graph, Column("Difference", True, DIFFERENCE))
    columns = (Column("Task"), Column("Metric"), Column("Documents", True), *figures, COLUMN)
    yield Table(columns, tuple(_row(task) for task in tasks))
    yield from not_counted(tasks)
    yield Note(
        "Behind ± stands one standard error. A difference within two of its own is not resolved: more documents would tell.", "quiet"
    )


def metric_title(task: TaskRow) -> str:
    """The metric, and an arrow to where it is better."""
    return task.metric + {True: " ↑", False: " ↓", None: ""}[task.higher_is_better]


def _row(task: TaskRow) -> tuple[Cell, ...]:
    documents = f"{task.documents:,}" if task.documents else formats.NONE
    graph = [figure(task.onnx)] if task.onnx else []
    figures = (figure(task.dense), figure(task.pruned), *graph, difference(task), flips_cell(task))
    return Cell(task.task), Cell(metric_title(task)), Cell(documents), *figures


def figure(measure: Measure, tone: Tone = "plain", sign: str = "") -> Cell:
    """A value of a metric and its standard error."""
    value = f"{measure.value:.4g}".replace("-", formats.MINUS)
    detail = "" if measure.error is None else f"± {measure.error:.2g}"
    return Cell(f"{sign}{value}", tone, detail=detail)


def difference(task: TaskRow) -> Cell:
    """Pruned minus dense; quiet where it is not resolved."""
    found = task.difference
    tone: Tone = "plain"
    if task.counts is False:
        return figure(found, "quiet", "+" if found.value > 0 else "")
    if found.error is not None and abs(found.value) <= RESOLVED * found.error:
        tone = "quiet"
    elif found.error is not None and task.higher_is_better is not None and found.value:
        tone = "good" if (found.value > 0) == task.higher_is_better else "bad"
    return figure(found, tone, "+" if found.value > 0 else "")


def by_text_items(rows: Sequence[ByText]) -> Iterator[Item]:
    """The table, and a sentence where texts fared unlike."""
    columns = (
        Column("Text"),
        Column("Dense", True, metrics.PERPLEXITY),
        Column("Pruned", True, metrics.PERPLEXITY),
        Column("Pruned ÷ dense", True),
        Column("KL to dense", True, DIVERGENCE),
        Column("Same best token", True, SAME_BEST),
    )
    yield Table(columns, tuple(_text_row(row) for row in rows))
    if (said := worse_elsewhere(rows)) is not None:
        yield Note(f"{said[:1].upper()}{said[1:]}.")


def worse_elsewhere(rows: Sequence[ByText]) -> str | None:
    """What a headline adds where another text lost far more than its own; None where none did."""
    if len(rows) < 2:
        return None
    first, worst = rows[0], max(rows[1:], key=lambda row: row.ratio)
    lost, most = math.log(first.ratio), math.log(worst.ratio)
    if not (most > lost + FAR and most > TIMES * lost):
        return None
    return f"on {worst.name} perplexity is {worst.ratio:.2f} times dense, where it is {first.ratio:.2f} times on {first.name}"


def _text_row(row: ByText) -> tuple[Cell, ...]:
    return (
        Cell(row.name),
        Cell(formats.perplexity(row.dense), detail=formats.error(row.dense)),
        *near_cells(row),
    )


def near_cells(row: ByText) -> tuple[Cell, ...]:
    """The pruned model's perplexity, over dense, and how near its predictions are to the dense model's."""
    return (
        Cell(formats.perplexity(row.pruned), detail=formats.error(row.pruned)),
        Cell(f"{row.ratio:.3f}×"),
        Cell(formats.NONE if row.divergence is None else f"{row.divergence:.3f}"),
        Cell(formats.NONE if row.same_best is None else formats.percent(row.same_best)),
    )
