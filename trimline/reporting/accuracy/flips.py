"""Answers of tasks that changed between dense and pruned, and whether a task says anything at all.

Accuracy hides what a model lost and won by chance: two models of equal accuracy may answer a third of the questions differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate.chance import beats_chance, flips
from trimline.reporting import formats
from trimline.reporting.content import Cell, Column, Note
from trimline.reporting.data import TaskRow

FLIPS = "answers that were right in dense alone, and in pruned alone; p of McNemar's exact test, two-sided"
COLUMN = Column("Lost, gained", True, FLIPS)


def answer_changes(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a ``TaskRow``, from two records of one metric; none where documents are not right or wrong."""
    before, after = dense.get("per_document") or [], pruned.get("per_document") or []
    if not before or len(before) != len(after) or any(value not in (0, 1) for value in (*before, *after)):
        return {}
    found, chance = flips([float(value) for value in before], [float(value) for value in after]), dense.get("chance")
    counts = None if chance is None else beats_chance(int(sum(before)), len(before), chance)
    return {"chance": chance, "lost": found.lost, "gained": found.gained, "p": found.p, "counts": counts}


def flips_cell(task: TaskRow) -> Cell:
    """Quiet where the task does not count, or the answers may have changed by chance."""
    if task.lost is None or task.p is None:
        return Cell(formats.NONE)
    if task.counts is False:
        return Cell(f"{task.lost}, {task.gained}", "quiet", detail="not counted")
    return Cell(f"{task.lost}, {task.gained}", "plain" if task.p < 0.05 else "quiet", detail=f"p = {task.p:.2g}")


def not_counted(tasks: Sequence[TaskRow]) -> Iterator[Note]:
    """A sentence on the tasks that the dense model cannot do."""
    said = [f"{task.task} ({task.metric} {task.dense.value:.3f}, chance {task.chance:.3f})" for task in tasks if task.counts is False]
    if said:
        yield Note(f"Not counted, since the dense model is within three standard errors of guessing: {', '.join(said)}.")
