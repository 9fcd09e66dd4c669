"""A recipe with a target, from the latency table to the report."""

from __future__ import annotations

import pytest

import benchmarks.latency.stage
import trimline.stages.rounds
import trimline.stages.works
from benchmarks.results.target import Judgement
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.plan.plan import Plan
from pipeline.prune.latency import Entry, LatencyTable, Times, identity
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_nothing_half_written, changed, recipe
from trimline.api import run
from trimline.recipe import checked_recipe
from trimline.stages.names import LATENCY, PREFLIGHT, SOURCE, TEXT
from trimline.stages.run import Run

pytestmark = pytest.mark.usefixtures("quick_measuring")
STEP = ("prune", "steps", 0)
DECODE = Times(0.004, (0.0, 0.002, 0.003), (0, 32, 64, 96), (0.0, 0.001, 0.003, 0.005))


@pytest.fixture(autouse=True)
def _quick_table(monkeypatch):
    monkeypatch.setattr(benchmarks.latency.stage, "BenchmarkWorker", InProcess)


@pytest.mark.slow
def test_a_target_of_time_and_size(inputs, tmp_path):
    """The table is measured for real; what so few rounds say of speed is that they resolve nothing."""
    values, said = recipe("faster", inputs), []
    result = run(values, tmp_path, options=OPTIONS, events=Events(said.append))
    dense = Checkpoint(inputs / "model").geometry
    table = LatencyTable.read(result.artefacts["latency"].folder)
    assert [(entry.workload, entry.phase) for entry in table.entries] == [("8/1", "prefill"), ("4/4", "prefill"), ("4/4", "decode")]
    assert table.predict(dense, "decode") > table.predict(dense.with_blocks(dense.blocks[:1]), "decode") > 0
    assert {path.name for path in result.artefacts["latency"].folder.iterdir()} == {
        "latency.json",
        "samples.json",
        "artefact.json",
        "run.json",
        "SHA256SUMS",
    }
    smaller = Checkpoint(result.package / "model").geometry
    assert 0.7 * dense.total_parameters() < smaller.total_parameters() <= 0.8 * dense.total_parameters()
    rows = {row.asked: row.outcome for row in result.report.targets}
    assert rows["decode in 60000 ms"].startswith("not resolved: dense did not agree with itself over 25 rounds")
    assert sorted(rows.values())[0] == "met"
    assert [row.counts for row in result.report.rounds] == [True]
    assert "Is it what was asked for?" in (result.package / "report.md").read_text(encoding="utf-8")
    assert any(event.text.startswith("target decode in 60000 ms: measured") for event in said)
    assert_nothing_half_written(tmp_path)
    again: list[Event] = []
    run(values, tmp_path, options=OPTIONS, events=Events(again.append))
    assert not [event for event in again if event.kind == "stage_started"]
    taken = changed(values, "benchmark", "latency_table", to=str(result.artefacts["latency"].folder))
    other = Run(checked_recipe(taken), OPTIONS, tmp_path / "other", Events(), "trimline run")
    for job in (SOURCE, TEXT, PREFLIGHT, LATENCY):
        other.do(job)
    assert LatencyTable.read(other.done[LATENCY].folder) == table


@pytest.fixture
def given_speeds(monkeypatch):
    """A latency table and measured speeds that are given, so that what follows from them can be told."""

    def given(*speeds: float) -> None:
        def table(source, form, tile, out, events):
            geometry = Checkpoint(source).geometry
            LatencyTable(identity(geometry), {}, (Entry("4/4", "decode", 3, DECODE),)).write(out)

        left = list(speeds)
        monkeypatch.setattr(trimline.stages.works, "latency_table", table)
        monkeypatch.setattr(
            trimline.stages.rounds,
            "judge",
            lambda results, target, model: (Judgement("speedup", "decode", target.speedup, *[left.pop(0)] * 3, control_holds=True),),
        )

    return given


def test_a_speed_that_was_missed_is_asked_for_again(inputs, tmp_path, given_speeds):
    given_speeds(1.2, 1.31)
    values = changed(recipe("faster", inputs), *STEP, "target", to={"speedup": 1.3})
    result = run(values, tmp_path, options=OPTIONS)
    first, second = result.report.rounds
    assert (first.given, second.given) == ("1.3×", "1.408×")  # 1.3 · 1.3 / 1.2
    assert (first.counts, second.counts) == (False, True)
    assert [row.outcome for row in result.report.targets] == ["met"]
    names = set(result.artefacts)
    assert {"prune", "prune, round 1", "rebuild, round 1", "export pruned, round 1", "benchmark, round 1"} <= names
    assert "export dense, round 1" not in names
    plans = [Plan.read(result.artefacts[name].folder) for name in ("prune, round 1", "prune")]
    assert plans[0].selection != plans[1].selection
    assert read_json(result.package / "plan.json") == read_json(result.artefacts["prune"].folder / "plan.json")
    assert plans[1].steps[0].facts["target"]["latency_ms"]["found"] <= 36 / 1.408


@pytest.mark.parametrize(
    ("target", "more", "words"),
    [
        ({"speedup": 1.3, "workload": "512/1"}, {}, "does not time"),
        ({"memory": 0.5}, {"export": {"precision": "int8"}}, "several widths"),
    ],
)
def test_what_no_run_can_judge_is_refused_before_anything_is_measured(inputs, tmp_path, target, more, words):
    values = changed(recipe("faster", inputs), *STEP, "target", to=target) | more
    with pytest.raises(TrimlineError, match=words):
        run(values, tmp_path, options=OPTIONS)
    assert not list((tmp_path / "store").glob("latency-*"))


def test_uneven_results_need_a_profile_that_holds_them(inputs, tmp_path):
    values = changed(recipe("faster", inputs), "rebuild", "profile", to="uniform")
    with pytest.raises(TrimlineError, match="uniform"):
        run(values, tmp_path, options=OPTIONS)
