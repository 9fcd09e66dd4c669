"""The table of stages: every job has a row, what a row needs is made before, and names are what people read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.artefacts.artefact import Artefact
from trimline.recipe import checked_recipe
from trimline.stages.names import (
    CURVE,
    DENSE,
    LANES,
    LATENCY,
    MEASURED,
    PACKAGE,
    PLAN,
    PRUNED,
    REBUILT,
    RECOVERED,
    REPORT,
    SETTLED,
    SMALLER,
    SOURCE,
    TEXT,
    TIMINGS,
    Lane,
    Name,
    Shard,
    engine_of,
    evaluation_of,
    export_of,
    tasks_of,
)  # fmt: skip
from trimline.stages.order import SHARED, curves, jobs
from trimline.stages.stage import Stage, StageCase
from trimline.stages.table import TABLE, TIMED, row_of

BUDGET = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}}
EXPERTS = {"method": "reap", "budget": {"expert": {"remove": 0.25}}}
TARGET = {"method": "trimline", "target": {"speedup": 1.3}}
EVERYTHING = {
    "rebuild": {"profile": "free"},
    "recover": {"kind": "full"},
    "lm_eval": {"tasks": ["one"]},
    "export": {"lowering": "portable"},
    "build": {"precision": "int8"},
}


def recipe(step: dict, **more):
    return checked_recipe({"prune": {"steps": [step]}} | more)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt", "torch"])
@pytest.mark.parametrize("step", [BUDGET, EXPERTS, TARGET])
@pytest.mark.parametrize("more", [{"rebuild": {"profile": "free"}}, EVERYTHING])
def test_what_a_stage_needs_is_made_before_it(runtime, step, more) -> None:
    wanted = recipe(step, benchmark={"runtime": runtime}, **more)
    if runtime == "tensorrt" and wanted.build is None:
        pytest.skip("preflight refuses it")
    done: dict[Name, Artefact] = {}
    for job in (*SHARED, *jobs(wanted, *LANES, shards=2), *curves(wanted), TIMINGS, REPORT, PACKAGE):
        row, case = row_of(job), StageCase(wanted, job, done)
        assert set(row.needs(case)) <= set(done), job
        if isinstance(row, Stage):
            done[job] = Artefact(job.stage, str(job), Path(job.stage), 0.0)
    assert list(row_of(REPORT).inputs(StageCase(wanted, REPORT, done))) == list(done)


def test_a_curve_is_drawn_where_experts_go_unless_the_recipe_says_no() -> None:
    for wanted, drawn in ((recipe(EXPERTS), True), (recipe(EXPERTS, curve={"removed": []}), False), (recipe(BUDGET), False)):
        assert (list(curves(wanted)) == [CURVE]) is drawn
        assert CURVE not in jobs(wanted, *LANES)  # which sweeps take


def test_a_changed_row_of_the_recipe_changes_what_counts() -> None:
    """The inputs that a key covers, where they hang on the recipe."""

    def inputs(name: Name, wanted, *made: Name) -> list[str]:
        case = StageCase(wanted, name, {one: Artefact(one.stage, "", Path(), 0.0) for one in made})
        return list(map(str, row_of(name).inputs(case)))

    plain, full = recipe(BUDGET), recipe(BUDGET, **EVERYTHING)
    part = Name("statistics", part=Shard(0, 2))
    assert inputs(MEASURED, plain) == ["source", "text"]
    assert inputs(MEASURED, plain, SOURCE, part) == ["source", "text", "statistics 0 of 2"]
    assert inputs(PLAN, plain, MEASURED, LATENCY) == ["source", "text", "measure", "latency"]
    assert inputs(evaluation_of(REBUILT), full) == ["rebuild", "text", "source"]  # how near it is to the dense one
    assert (inputs(export_of(PRUNED), plain), inputs(export_of(PRUNED), full)) == (["rebuild"], ["recover"])
    assert inputs(engine_of(DENSE), full) == ["export dense", "text"]
    assert inputs(engine_of(DENSE), recipe(BUDGET, **EVERYTHING | {"build": {"precision": "graph"}})) == ["export dense"]
    assert inputs(PACKAGE, plain) == ["report", "rebuild", "export pruned", "benchmark"]
    assert inputs(PACKAGE, full) == ["report", "recover", "export pruned", "benchmark", "build pruned"]


def test_what_is_timed_stands_alone() -> None:
    assert {"latency", "settle", "benchmark"} == TIMED
    assert len({(row.name, row.form) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        (TEXT, "text", "texts"),
        (SETTLED, "settle", "settle"),
        (Name("statistics", part=Shard(0, 3)), "statistics 0 of 3", "statistics 0"),
        (evaluation_of(REBUILT), "evaluate rebuilt", "evaluate rebuilt"),
        (evaluation_of(DENSE.engine), "evaluate dense engine", "evaluate_engine dense"),
        (tasks_of(PRUNED.graph), "lm_eval pruned graph", "examine_graph"),
        (export_of(Lane("pruned", "graph")), "export pruned", "export pruned"),
        (SMALLER.of_round(2), "rebuild, round 2", "rebuild"),
        (RECOVERED, "recover", "recover"),
    ],
)
def test_names_are_what_people_read_and_travel_as_plain_values(name, text, title) -> None:
    assert str(name) == text
    assert row_of(name).title(name) == title
    assert Name.from_record(json.loads(json.dumps(asdict(name)))) == name
