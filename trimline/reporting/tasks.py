"""The section on tasks of the lm-eval harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimline.reporting import formats
from trimline.reporting.content import Cell, Column, Item, Note, Table, Tone
from trimline.reporting.data import Measure, TaskRow

RESOLVED = 1.96  # standard errors that a difference has to be away from nothing
DIFFERENCE = "pruned minus dense; its standard error is that of the differences document by document"


def task_items(tasks: Sequence[TaskRow]) -> Iterator[Item]:
    """The table and how to read it."""
    figures = (Column("Dense", True), Column("Pruned", True), Column("Pruned, ONNX", True), Column("Difference", True, DIFFERENCE))
    columns = (Column("Task"), Column("Metric"), Column("Documents", True), *figures)
    yield Table(columns, tuple(_row(task) for task in tasks))
    yield Note(
        "Behind ± stands one standard error. A difference within two of its own is not resolved: more documents would tell.", "quiet"
    )


def metric_title(task: TaskRow) -> str:
    """The metric, and an arrow to where it is better."""
    return task.metric + {True: " ↑", False: " ↓", None: ""}[task.higher_is_better]


def _row(task: TaskRow) -> tuple[Cell, ...]:
    documents = f"{task.documents:,}" if task.documents else formats.NONE
    figures = (figure(task.dense), figure(task.pruned), figure(task.onnx), difference(task))
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
    if found.error is not None and abs(found.value) <= RESOLVED * found.error:
        tone = "quiet"
    elif found.error is not None and task.higher_is_better is not None and found.value:
        tone = "good" if (found.value > 0) == task.higher_is_better else "bad"
    return figure(found, tone, "+" if found.value > 0 else "")
