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


def task_rows(done: Mapping[Name, Artefact]) -> Iterator[TaskRow]:
    """One row per task and metric, groups last; none where no task was run."""
    found = [read_json(done[name].folder / RESULT) for lane in (DENSE, PRUNED, PRUNED.graph) if (name := tasks_of(lane)) in done]
    if found:
        yield from rows_of(*found)


def rows_of(dense: Mapping[str, Any], pruned: Mapping[str, Any], graph: Mapping[str, Any] | None = None) -> Iterator[TaskRow]:
    """The same from records of the same tasks; without a graph where none was made."""
    for kind in ("tasks", "groups"):
        third = graph[kind] if graph else [None] * len(dense[kind])
        for rows in zip(dense[kind], pruned[kind], third, strict=True):
            yield _row(*rows)


def _row(dense: Mapping[str, Any], pruned: Mapping[str, Any], graph: Mapping[str, Any] | None) -> TaskRow:
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
        onnx=None if graph is None else _measure(graph),
        difference=Measure(pruned["value"] - dense["value"], error=error),
        higher_is_better=dense.get("higher_is_better"),
        **changed,
    )


def _measure(row: Mapping[str, Any]) -> Measure:
    return Measure(row["value"], error=row["standard_error"])
