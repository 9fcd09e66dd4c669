"""A sweep over targets of speed: the latency table is measured once, every point is pruned, timed and gone through again by itself."""

from __future__ import annotations

import pytest

import benchmarks.stage
import trimline.stages.works
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Event, Events
from pipeline.prune.latency import Entry, LatencyTable, Times, identity
from pipeline.prune.recipe import PruneStep
from tests.end_to_end.scenario import OPTIONS, InProcess, recipe, tiny_inputs
from trimline.api import run, sweep
from trimline.stages.table import TIMED

if "target" not in PruneStep.model_fields:
    pytest.skip("this recipe knows no targets", allow_module_level=True)
latency_stage = pytest.importorskip("benchmarks.latency.stage")


@pytest.fixture(autouse=True)
def _quick_measuring(monkeypatch):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    monkeypatch.setattr(latency_stage, "BenchmarkWorker", InProcess)


def given_table(source, form, tile, out, events):
    """A latency table by which every unit takes its time."""
    geometry = Checkpoint(source).geometry
    block = geometry.blocks[0]
    widths = tuple(range(0, block.ffn + 1, tile))
    times = Times(0.004, tuple(0.001 * group for group in range(block.kv_groups + 1)), widths, tuple(1e-4 * width for width in widths))
    entries = tuple(Entry(workload.name, "decode", workload.steps, times) for workload in form.recipe.workloads if workload.steps)
    LatencyTable(identity(geometry), {}, entries).write(out)


def started(told: list[Event]) -> list[str]:
    return [event.stage.split(" ")[0] for event in told if event.kind == "stage_started"]


@pytest.mark.slow
def test_points_share_the_latency_table_and_are_compared_with_one_dense_model(tmp_path):
    assert {"latency", "settle"} <= TIMED
    values, told = recipe("faster", tiny_inputs(tmp_path / "inputs")), []
    grid = {"method": ["cfsp", "wanda_sp"], "prune.steps.0.target": [{"latency_ms": 60000, "parameters": 0.8}]}
    found = sweep(values, grid, tmp_path / "out", options=OPTIONS, events=Events(told.append))
    assert [point.failure or point.untimed for point in found.points] == [""] * 2
    assert all(point.speeds for point in found.points)
    stages = started(told)
    assert stages.count("latency") == 1
    assert stages.count("evaluate") == stages.count("export") == 3
    assert [[target.asked for target in point.targets] for point in found.points] == [["decode in 60000 ms"]] * 2
    assert all(target.outcome.startswith("not resolved") for point in found.points for target in point.targets)  # two rounds say nothing
    assert stages[-1] == "benchmark"  # all of them side by side, after each was judged by itself
    first = next(place for place, stage in enumerate(stages) if stage == "benchmark")
    assert stages[:first].count("prune") == stages[:first].count("rebuild") == 2  # on a cluster these run side by side
    dense = found.dense.parameters
    for point in found.points:
        assert point.parameters <= dense * point.settings["prune.steps.0.target"]["parameters"]
    again: list[Event] = []
    sweep(values, grid, tmp_path / "out", options=OPTIONS, events=Events(again.append))
    assert started(again) == []


def test_the_short_name_takes_the_place_of_the_recipes_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(trimline.stages.works, "latency_table", given_table)  # a measured one of so few rounds may allow no 1.01
    values = recipe("cfsp-least-squares", tiny_inputs(tmp_path / "inputs"))
    found = sweep(values, {"speedup": [1.01]}, tmp_path / "out", options=OPTIONS)
    assert [point.failure for point in found.points] == [""]
    told: list[Event] = []
    point = tmp_path / "out" / "points" / "speedup=1.01" / "recipe.yaml"
    result = run(point, tmp_path / "out", options=OPTIONS, events=Events(told.append))
    assert result.report.targets
    assert started(told) == ["report", "package"]  # the point is what a run of its recipe makes, rounds included
