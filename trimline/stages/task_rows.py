"""What a report says of tasks: dense against pruned, document by document, and what the delivered graph makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.artefacts.artefact import Artefact
from pipeline.common.files import read_json
from pipeline.evaluate.harness.paired import difference_error
from pipeline.evaluate.harness.scores import RESULT
from trimline.reporting.accuracy.flips import answer_changes
from trimline.reporting.data import Measure, TaskRow
from trimline.stages.names import DENSE, PRUNED, Name, tasks_of

SUBJECTS = (DENSE, PRUNED, PRUNED.graph)


def task_rows(done: Mapping[Name, Artefact]) -> Iterator[TaskRow]:
    """One row per task and metric, groups last; none where no task was run."""
    folders = [done[name].folder for lane in SUBJECTS if (name := tasks_of(lane)) in done]
    if len(folders) == len(SUBJECTS):
        yield from rows_of(*(read_json(folder / RESULT) for folder in folders))


def rows_of(dense: Mapping[str, Any], pruned: Mapping[str, Any], graph: Mapping[str, Any]) -> Iterator[TaskRow]:
    """The same from three records of the same tasks."""
    for kind in ("tasks", "groups"):
        for first, second, third in zip(dense[kind], pruned[kind], graph[kind], strict=True):
            yield _row(first, second, third)


def _row(dense: Mapping[str, Any], pruned: Mapping[str, Any], graph: Mapping[str, Any]) -> TaskRow:
    error = None
    if "per_document" in dense:
        error = difference_error(dense["aggregation"], dense["per_document"], pruned["per_document"])
    usual = dense["filter"] == "none"
    changed = answer_changes(dense, pruned)
    return TaskRow(
        task=dense.get("task") or dense["group"],
        metric=dense["metric"] if usual else f"{dense['metric']} ({dense['filter']})",
        documents=dense.get("documents", 0),
        dense=_measure(dense),
        pruned=_measure(pruned),
        onnx=_measure(graph),
        difference=Measure(pruned["value"] - dense["value"], error=error),
        higher_is_better=dense.get("higher_is_better"),
        **changed,
    )


def _measure(row: Mapping[str, Any]) -> Measure:
    return Measure(row["value"], error=row["standard_error"])
