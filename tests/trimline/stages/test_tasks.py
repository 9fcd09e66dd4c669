"""Tasks of lm-eval in a run, in its report, in a sweep and by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.stage
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.common.markdown import escape
from pipeline.evaluate.harness.scores import RESULT
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_refused, changed, recipe, tiny_inputs, trimline
from tests.pipeline.evaluate.harness.test_files import GOOD, task
from trimline.api import run, sweep
from trimline.reporting.data import Measure, TaskRow
from trimline.reporting.tasks import task_items
from trimline.stages.task_rows import rows_of

OWN = Path(__file__).parents[3] / "recipes" / "tasks"


@pytest.fixture(autouse=True)
def _quick_measuring(monkeypatch):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)


def record(metric: str, aggregation: str, value: float, documents: list, **more):
    row = {"task": "t", "metric": metric, "filter": "none", "value": value, "standard_error": 0.1, "aggregation": aggregation}
    row |= {"documents": len(documents), "per_document": documents, "higher_is_better": True} | more
    return {"tasks": [row], "groups": [{"group": "g", "metric": metric, "filter": "strict", "value": value, "standard_error": None}]}


def test_rows_pair_documents():
    dense, pruned = record("acc", "mean", 0.75, [1.0, 1.0, 0.0, 1.0]), record("acc", "mean", 0.5, [1.0, 0.0, 0.0, 1.0])
    first, group = rows_of(dense, pruned, pruned)
    assert (first.task, first.metric, first.documents) == ("t", "acc", 4)
    assert first.difference.value == -0.25
    assert first.difference.error == pytest.approx(0.25)
    assert (group.task, group.metric, group.documents, group.difference.error) == ("g", "acc (strict)", 0, None)


def test_rows_say_whose_answers_changed_and_whether_the_task_counts():
    answers = [1.0] * 60 + [0.0] * 40, [0.0] * 12 + [1.0] * 50 + [0.0] * 38
    dense, pruned = (record("acc", "mean", sum(side) / 100, side, chance=0.25) for side in answers)
    first, _ = rows_of(dense, pruned, pruned)
    assert (first.lost, first.gained, first.chance, first.counts) == (12, 2, 0.25, True)
    assert first.p == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    guessing, _ = rows_of(record("acc", "mean", 0.6, answers[0], chance=0.5), pruned, pruned)
    assert guessing.counts is False
    table, note, *_ = task_items((first, guessing))
    assert [row[-1].text for row in table.rows] == ["12, 2", "12, 2"]
    assert [row[-1].detail for row in table.rows] == ["p = 0.013", "not counted"]
    assert note.text == "Not counted, since the dense model is within three standard errors of guessing: t (acc 0.600, chance 0.500)."
    prose, _ = rows_of(
        record("word_perplexity", "weighted_perplexity", 9.0, [[-3.0, 2], [-2.0, 1]]),
        *[record("word_perplexity", "weighted_perplexity", 9.0, [[-3.0, 2], [-2.0, 1]])] * 2,
    )
    assert (prose.lost, prose.counts) == (None, None)


def test_rows_without_a_graph_have_no_column_for_it():
    dense = record("acc", "mean", 0.75, [1.0, 1.0, 0.0, 1.0])
    rows = tuple(rows_of(dense, dense))
    assert [row.onnx for row in rows] == [None, None]
    table = next(iter(task_items(rows)))
    assert [column.title for column in table.columns] == [
        "Task",
        "Metric",
        "Documents",
        "Dense",
        "Pruned",
        "Difference",
        "Lost, gained",
    ]
    assert {len(row) for row in table.rows} == {7}


@pytest.mark.parametrize(
    ("value", "error", "higher", "tone"),
    [(-0.5, 0.1, True, "bad"), (0.5, 0.1, True, "good"), (0.5, 0.1, False, "bad"), (-0.1, 0.1, True, "quiet"), (-0.5, None, True, "plain")],
)
def test_a_difference_is_coloured_where_it_is_resolved(value, error, higher, tone):
    row = TaskRow("t", "acc", 4, Measure(0.75), Measure(0.25), Measure(0.25), Measure(value, error=error), higher)
    cell = next(iter(task_items((row,)))).rows[0][-2]
    assert cell.tone == tone
    assert cell.text.startswith("+" if value > 0 else "\u2212")


def test_a_wrong_task_is_found_before_anything_is_pruned(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    values = recipe("cfsp-least-squares", tiny_inputs(tmp_path / "inputs"))
    with pytest.raises(TrimlineError, match="There is no task file"):
        run(values | {"lm_eval": {"tasks": ["none.yaml"]}}, tmp_path / "run", options=OPTIONS)
    assert not list((tmp_path / "run" / "store").glob("prune-*"))


def test_a_run_asks_both_models_and_the_graph(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    path = task(tmp_path, GOOD)
    values = recipe("cfsp-least-squares", tiny_inputs(tmp_path / "inputs")) | {"lm_eval": {"tasks": [str(path)]}}
    values = changed(values, "prune", "steps", 0, "round_to", to=8)
    first = run(values, tmp_path / "run", options=OPTIONS)
    lanes = [name for name in first.artefacts if name.startswith("lm_eval")]
    assert lanes == ["lm_eval dense", "lm_eval pruned", "lm_eval pruned graph"]
    found = [read_json(first.artefacts[name].folder / RESULT) for name in lanes]
    rows = {row.metric: row for row in first.report.tasks}
    assert set(rows) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    for metric, row in rows.items():
        values_ = [next(part["value"] for part in part_of["tasks"] if part["metric"] == metric) for part_of in found]
        assert [row.dense.value, row.pruned.value, row.onnx.value] == values_
        assert row.onnx.value == pytest.approx(row.pruned.value, rel=1e-3)
    assert "What it still can do" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = run(values, tmp_path / "run", options=OPTIONS)
    assert all(artefact.skipped for artefact in again.artefacts.values())
    (tmp_path / "own.jsonl").write_text('{"text": "Another line."}\n')
    changed_data = run(values, tmp_path / "run", options=OPTIONS).artefacts
    assert [name for name, artefact in changed_data.items() if not artefact.skipped] == [*lanes, "report", "package"]


def test_a_sweep_shows_the_same_tasks_of_every_point(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    values = recipe("cfsp-least-squares", tiny_inputs(tmp_path / "inputs")) | {"lm_eval": {"tasks": [str(task(tmp_path, GOOD))]}}
    values = changed(values, "prune", "steps", 0, "round_to", to=8)
    found = sweep(values, {"remove": [0.25, 0.5]}, tmp_path / "out", options=OPTIONS)
    first, second = (point.tasks for point in found.points)
    assert [row.metric for row in first] == [row.metric for row in second] == [row.metric for row in found.tasks]
    assert [row.dense for row in first] == [row.dense for row in second]
    assert first[0].pruned.value != second[0].pruned.value
    kept = [read_json(folder / RESULT)["tasks"][0]["value"] for folder in (tmp_path / "out" / "store").glob("lm_eval-*")]
    assert {first[0].dense.value, first[0].pruned.value, second[0].pruned.value} <= set(kept)
    heading = f"{found.tasks[0].task}, {found.tasks[0].metric}"
    assert heading in (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")
    assert escape(heading) in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")


def test_the_verb_evaluate(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    model = tiny_inputs(tmp_path) / "model"
    called = trimline("evaluate", model, "--task", OWN, "--limit", 4, "--batch", 2, "--threads", 1, "--json")
    assert called.code == 0, called.stderr
    metrics = {(row["task"], row["metric"], row["documents"]) for row in called.answer["tasks"]}
    assert {("opposites", "acc", 4), ("short_prose", "bits_per_byte", 4)} <= metrics
    assert "opposites" in called.stdout
    assert len(json.dumps(called.answer)) < 10_000
    assert_refused(trimline("evaluate", model, "--shots", 2), "--shots", "--task")
    assert_refused(trimline("evaluate", model, "--task", "./none"), "./none")
