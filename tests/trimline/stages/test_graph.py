"""Keys, lanes and preflight of the table of stages."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

import benchmarks.stage
import trimline.stages.works
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import Artefact
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.prune.steps import resolve_steps
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_nothing_half_written, changed, prose, recipe, tiny_inputs
from tests.exporters.tensorrt.conftest import rtx  # noqa: F401 - a fixture
from trimline.api import run
from trimline.recipe import checked_recipe
from trimline.stages.lanes import evaluated
from trimline.stages.names import (
    DENSE,
    MEASURED,
    PACKAGE,
    PLAN,
    PREFLIGHT,
    PRUNED,
    REPORT,
    SMALLER,
    SOURCE,
    TEXT,
    TIMINGS,
    Lane,
    engine_of,
    evaluation_of,
    export_of,
)  # fmt: skip
from trimline.stages.preflight import shapes_asked_for
from trimline.stages.run import Run

STEP = ("prune", "steps", 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def _quick_measuring(monkeypatch):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)


def until(values, output, *jobs, options=OPTIONS):
    """A run that stops after some stages; its artefacts."""
    begun = Run(checked_recipe(values), options, output, Events(), "trimline run")
    for job in jobs:
        begun.do(job)
    return begun.done


@pytest.mark.parametrize(
    ("change", "profile", "expected"),
    [
        ({"budget": {"ffn": {"remove": 0.5}}}, "free", (True, False, False)),
        ({"budget": {"ffn": {"remove": 0.5}}, "allocation": "uniform"}, "free", (False, False, False)),
        ({"budget": {"ffn": {"keep": 8}}}, "uniform", (False, False, False)),
        ({"budget": {"ffn": {"keep": [8, 8, 8, 8]}}}, "uniform", (False, False, False)),
        ({"budget": {"ffn": {"keep": [8, 9, 8, 8]}}}, "uniform", (True, False, False)),
        ({"budget": {"kv_group": {"keep": [1, 0, 1, 1]}}}, "decilm", (False, False, True)),
        ({"budget": {"kv_group": {"keep": [1, 0, 1, 1]}}}, "uniform", (False, True, True)),
        ({"budget": {"kv_group": {"keep": [1, 2, 1, 1]}}}, "decilm", (False, True, True)),
        ({"budget": {"kv_group": {"remove": 0.5}}}, "free", (False, False, True)),
        ({"budget": {"kv_group": {"remove": 0.5}}, "allocation": "global"}, "free", (False, True, True)),
        ({"budget": {"layer": {"keep": 2}}, "method": "block_influence"}, "uniform", (False, False, False)),
    ],
)
def test_shapes_that_a_recipe_may_produce(inputs, change, profile, expected):
    step = {"method": "cfsp_extended"} | change
    values = changed(recipe("cfsp-least-squares", inputs), *STEP, to=step)
    assert shapes_asked_for(resolve_steps(checked_recipe(values).prune), Profile(profile)) == expected


def test_absent_attention_is_given_by_a_list_and_kept_by_decilm(inputs, tmp_path):
    step = {"method": "cfsp_extended", "budget": {"kv_group": {"keep": [2, 0, 2, 2]}}}
    done = until(changed(recipe("cfsp-least-squares", inputs), *STEP, to=step), tmp_path, SOURCE, TEXT, PREFLIGHT, PLAN, SMALLER)
    assert (done[SMALLER].folder / "model.safetensors").exists()


def test_the_key_of_the_plan_depends_on_all_that_decides(inputs, tmp_path):
    values = recipe("cfsp-least-squares", inputs)
    stages = (SOURCE, TEXT, PLAN)
    keys = {"as it is": until(values, tmp_path, *stages)[PLAN].key}
    keys["budget"] = until(changed(values, *STEP, "budget", "ffn", "remove", to=0.4), tmp_path, *stages)[PLAN].key
    keys["windows"] = until(changed(values, "prune", "calibration", "seed", to=1), tmp_path, *stages)[PLAN].key
    keys["dtype"] = until(values, tmp_path, *stages, options=replace(OPTIONS, dtype="bfloat16"))[PLAN].key
    keys["threads"] = until(values, tmp_path, *stages, options=replace(OPTIONS, threads=2))[PLAN].key
    other = tiny_inputs(tmp_path / "other", seed=1)
    keys["weights"] = until(changed(values, "model", to=str(other / "model")), tmp_path, *stages)[PLAN].key
    text = tmp_path / "text.txt"
    text.write_text((inputs / "calibration.txt").read_text() + "more words\n")
    keys["text"] = until(changed(values, "text", "calibration", to=str(text)), tmp_path, *stages)[PLAN].key
    assert len(set(keys.values())) == len(keys), keys
    assert until(changed(values, "name", to="other"), tmp_path, *stages)[PLAN].key == keys["as it is"]
    assert until(changed(values, "evaluate", "windows", to=2), tmp_path, *stages)[PLAN].key == keys["as it is"]


@pytest.mark.parametrize(
    ("runtime", "exported", "built", "read"),
    [
        ("onnxruntime", "fp32", "graph", "evaluate pruned"),
        ("onnxruntime", "int4", "graph", "evaluate pruned graph"),
        ("onnxruntime", "fp32", "int8", "evaluate pruned"),
        ("torch", "int4", "graph", "evaluate pruned"),
        ("torch_2_4", "fp16", "int8", "evaluate pruned"),
        ("tensorrt", "fp32", "graph", "evaluate pruned"),
        ("tensorrt", "fp16", "graph", "evaluate pruned graph"),
        ("tensorrt", "fp16", "int8", "evaluate pruned engine"),
    ],
)
def test_the_perplexity_beside_a_speed_is_of_what_is_timed(inputs, tmp_path, monkeypatch, runtime, exported, built, read):
    values = recipe("cfsp-least-squares", inputs) | {
        "export": {"precision": exported, "lowering": "portable"},
        "build": {"precision": built},
    }
    begun = Run(checked_recipe(changed(values, "benchmark", "runtime", to=runtime)), OPTIONS, tmp_path, Events(), "trimline run")
    assert str(evaluated(begun.recipe, PRUNED)) == read
    made = []
    monkeypatch.setattr(
        trimline.stages.works, "evaluate_graph", lambda checkpoint, folder, *rest: made.append((checkpoint.name, folder.name))
    )
    begun.done = {
        name: Artefact(name.stage, name.stage, tmp_path / name.stage, 0.0) for name in (TEXT, SMALLER, export_of(PRUNED), engine_of(PRUNED))
    }
    begun.do(evaluation_of(PRUNED.graph))
    begun.do(evaluation_of(PRUNED.engine))
    sources = {"evaluate pruned graph": ("rebuild", "export"), "evaluate pruned engine": ("rebuild", "qdq")}
    assert [str(name) for name in begun.done if name.stage == "evaluate"] == [name for name in (read,) if name in sources]
    assert made == [sources[name] for name in (read,) if name in sources]


@pytest.mark.slow
def test_an_int8_engine_is_timed_beside_the_perplexity_of_its_graph(inputs, tmp_path, monkeypatch, rtx):  # noqa: F811
    """Its accuracy comes from the quantised graph, and the benchmark's key follows that evaluation."""
    shown = []
    monkeypatch.setattr(trimline.stages.works, "benchmark", lambda *given: shown.append(given[-1]))
    for name, seed in (("calibration", 3), ("evaluation", 4)):
        (tmp_path / f"{name}.txt").write_text(prose(seed, 60), encoding="utf-8")
    texts = {name: str(tmp_path / f"{name}.txt") for name in ("calibration", "evaluation")}
    engine = {"builder": "tensorrt_rtx", "precision": "int8", "calibration_windows": 2, "calibration_window": 32, "largest_ratio": 2.0}
    values = recipe("cfsp-least-squares", inputs) | {"text": texts, "export": {"lowering": "portable"}, "build": engine}
    values = changed(values, "benchmark", "runtime", to="tensorrt")
    keys = {}
    for windows in (2, 3):
        run = Run(checked_recipe(changed(values, "evaluate", "windows", to=windows)), OPTIONS, tmp_path / "out", Events(), "trimline run")
        for job in (SOURCE, TEXT, evaluation_of(DENSE), export_of(DENSE), engine_of(DENSE), evaluation_of(DENSE.engine)):
            run.do(job)
        run.done |= {replace(name, lane=Lane("pruned", name.lane.form)): found for name, found in run.done.items() if name.lane}
        run.do(TIMINGS)
        keys[windows] = run.done[TIMINGS].key
    read, exact = (read_json(run.done[name].folder / "perplexity.json") for name in (evaluation_of(DENSE.engine), evaluation_of(DENSE)))
    assert read["precision"] == "int8"
    assert read_json(run.done[engine_of(DENSE)].folder / "qdq" / "export.json")["precision"] == "int8"
    assert shown[-1] == {"dense": read["perplexity"], "pruned": read["perplexity"]}
    assert read["perplexity"] != exact["perplexity"]
    assert keys[2] != keys[3]


def test_a_package_gets_the_engine_of_the_pruned_model(inputs, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(trimline.stages.works, "package", lambda parts, *rest: given.append(parts))
    values = recipe("cfsp-least-squares", inputs) | {"export": {"lowering": "portable"}}
    keys = set()
    for more in ({"build": {}}, {}):
        begun = Run(checked_recipe(values | more), OPTIONS, tmp_path, Events(), "trimline run")
        names = (PLAN, SMALLER, export_of(PRUNED), engine_of(PRUNED), TIMINGS, REPORT)
        begun.done = {name: Artefact(str(name), str(name), tmp_path / str(name), 0.0) for name in names}
        begun.do(PACKAGE)
        keys.add(begun.done[PACKAGE].key)
    assert [parts.engine for parts in given] == [tmp_path / "build pruned", None]
    assert len(keys) == 2


def test_a_relative_model_is_the_same_model_from_elsewhere(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "here")
    (tmp_path / "elsewhere").mkdir()
    values = changed(recipe("cfsp-least-squares", inputs), "model", to="here/model")
    monkeypatch.chdir(tmp_path)
    relative = until(values, tmp_path / "out", SOURCE)[SOURCE]
    monkeypatch.chdir(tmp_path / "elsewhere")
    absolute = until(changed(values, "model", to=str(tmp_path / "here" / "model")), tmp_path / "out", SOURCE)[SOURCE]
    assert absolute.key == relative.key
    assert absolute.skipped


def test_a_foreign_source_json_leads_nowhere(inputs, tmp_path):
    model = shutil.copytree(inputs / "model", tmp_path / "model")
    (model / "source.json").write_text('{"folder": "/etc"}')
    done = until(changed(recipe("cfsp-least-squares", inputs), "model", to=str(model)), tmp_path / "out", SOURCE, TEXT, PLAN)
    assert (done[PLAN].folder / "plan.json").exists()


def test_a_failed_gate_fails_the_run_and_keeps_what_is_whole(inputs, tmp_path, monkeypatch):
    from pipeline.rebuild import stage

    def broken(checkpoint, plan):
        tensors = dict(cut(checkpoint, plan))
        tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
        return tensors

    cut = stage.Cut
    monkeypatch.setattr(stage, "Cut", broken)
    with pytest.raises(GateError, match=r"does not compute what .* position") as caught:
        run(recipe("cfsp-least-squares", inputs), tmp_path / "out", options=OPTIONS)
    assert caught.value.exit_code == 3
    assert_nothing_half_written(tmp_path / "out")
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "out" / "store").glob("*-*")) == ["measure", "prune", "source", "text"]


def test_events_tell_of_every_stage_once(inputs, tmp_path):
    told: list[Event] = []
    values = recipe("cfsp-least-squares", inputs)
    for kind in ("stage_finished", "stage_skipped"):
        told.clear()
        run(values, tmp_path / "out", options=OPTIONS, events=Events(told.append))
        assert len([event for event in told if event.kind == kind]) == 12
    assert not [event for event in told if event.kind == "stage_started"]


def test_the_package_is_a_folder_and_the_link_to_the_report_moves_with_the_run(inputs, tmp_path):
    run(recipe("cfsp-least-squares", inputs), tmp_path / "out", options=OPTIONS)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    link = tmp_path / "moved" / "report.html"
    assert not os.path.isabs(os.readlink(link))
    assert link.resolve().is_relative_to(tmp_path / "moved")
    assert not (tmp_path / "moved" / "package").is_symlink()
    assert (tmp_path / "moved" / "package" / "manifest.json").is_file()


def test_bf16_on_a_processor_is_refused_before_anything_is_pruned(inputs, tmp_path):
    values = recipe("cfsp-least-squares", inputs) | {"export": {"precision": "bf16"}}
    with pytest.raises(TrimlineError, match="bf16 does not run"):
        run(values, tmp_path / "out", options=OPTIONS)
    assert_nothing_half_written(tmp_path / "out")
    assert not list((tmp_path / "out" / "store").glob("measure-*"))


def test_another_budget_measures_nothing_again(inputs, tmp_path):
    values, stages = recipe("cfsp-least-squares", inputs), (SOURCE, TEXT, MEASURED, PLAN)
    first = until(values, tmp_path, *stages)
    other = until(changed(values, *STEP, "budget", "ffn", "remove", to=0.4), tmp_path, *stages)
    assert (other[MEASURED].skipped, other[PLAN].skipped) == (True, False)
    assert other[MEASURED].key == first[MEASURED].key
    assert not until(changed(values, *STEP, "method", to="wanda_sp"), tmp_path, *stages)[MEASURED].skipped


def test_an_unknown_method_is_refused_before_the_model_is_opened(inputs, tmp_path):
    values = changed(recipe("cfsp-least-squares", inputs), *STEP, "method", to="cfps")
    with pytest.raises(TrimlineError, match="'cfsp'"):
        run(values, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()
