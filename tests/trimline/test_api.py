"""The Python API: the verbs as functions, on plain values and on files."""

from __future__ import annotations

import inspect
import json
import pkgutil
import typing
from importlib import import_module

import pytest

import benchmarks.stage
import trimline
import trimline.api as api
from benchmarks.recipe import BenchmarkSlice, Workload
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.plan.plan import Plan
from tests.end_to_end.scenario import OPTIONS, InProcess, recipe, tiny_inputs, written
from trimline.recipe import checked_recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def values(inputs):
    return recipe("cfsp-least-squares", inputs)


@pytest.fixture(autouse=True)
def _quick_measuring(monkeypatch):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)


def test_every_public_function_is_typed_and_says_what_it_does():
    for name in api.__all__:
        function = getattr(api, name)
        assert inspect.getdoc(function), name
        if inspect.isfunction(function):
            hints = typing.get_type_hints(function)
            assert set(inspect.signature(function).parameters) | {"return"} == set(hints), name


def test_every_name_of_the_package_is_where_it_is_looked_for():
    assert [name for name in trimline.__all__ if getattr(trimline, name).__name__ != name] == []


def test_no_public_name_is_hidden_by_a_package():
    """Importing ``trimline.X`` puts a module into the place of a public X; Python does that on first import, for good."""
    modules = {module.name for module in pkgutil.iter_modules(trimline.__path__)}
    assert modules & set(trimline.__all__) == set()
    assert all(getattr(trimline, name) is getattr(import_module(trimline._HOME[name]), name) for name in trimline.__all__)


def test_a_public_function_stays_callable(values, tmp_path):
    for _ in range(2):
        with pytest.raises(trimline.TrimlineError, match="no key of the recipe"):
            trimline.sweep(values, {"nothing": [1]}, tmp_path / "out")
        assert inspect.isfunction(trimline.sweep)


def test_a_recipe_can_be_a_file_a_recipe_or_plain_values(values, tmp_path):
    forms = (values, checked_recipe(values), written(values, tmp_path), str(written(values, tmp_path)))
    plans = [api.prune(form, tmp_path / str(number), options=OPTIONS) for number, form in enumerate(forms)]
    assert all(plan.selection == plans[0].selection for plan in plans)
    assert all(isinstance(plan, Plan) for plan in plans)


def test_the_model_of_prune_replaces_that_of_the_recipe(values, tmp_path):
    other = tiny_inputs(tmp_path / "other", seed=5)
    first = api.prune(values, tmp_path / "a", options=OPTIONS)
    second = api.prune(values, tmp_path / "b", model=other / "model", options=OPTIONS)
    assert first.selection != second.selection


def test_token_ids_need_no_text(values, tmp_path):
    given = values | {"text": {"calibration": "nowhere.txt"}}
    given["prune"] = values["prune"] | {"calibration": {"token_ids": [list(range(4, 36)), list(range(40, 72))]}}
    plan = api.prune(given, tmp_path / "plan", options=OPTIONS)
    assert plan.steps[0].facts["tokens"] == 64


def test_the_verbs_one_after_another(values, inputs, tmp_path):
    told: list[Event] = []
    events = Events(told.append)
    plan = api.prune(values, tmp_path / "plan", options=OPTIONS, events=events)
    smaller = api.rebuild(inputs / "model", tmp_path / "plan", tmp_path / "smaller", profile=Profile.DECILM, options=OPTIONS, events=events)
    assert [block.ffn for block in Checkpoint(smaller).geometry.blocks] == [len(units) for units in plan.selection.ffn]
    found = {
        name: api.evaluate(folder, text=str(inputs / "evaluation.txt"), windows=4, window=32, options=OPTIONS)
        for name, folder in (("dense", inputs / "model"), ("smaller", smaller))
    }
    assert all(perplexity.value > 1 and len(perplexity.window_losses) == 4 for perplexity in found.values())
    exports = {
        name: api.export(folder, tmp_path / f"{name} onnx", options=OPTIONS)
        for name, folder in (("dense", inputs / "model"), ("smaller", smaller))
    }
    by_graph = api.evaluate(exports["smaller"], text=str(inputs / "evaluation.txt"), windows=4, window=32, options=OPTIONS)
    assert by_graph.window_losses == pytest.approx(found["smaller"].window_losses, abs=1e-4)
    results = api.bench(
        exports["dense"],
        {"smaller": exports["smaller"]},
        tmp_path / "timings",
        accuracy={name: perplexity.value for name, perplexity in found.items()},
        recipe=BenchmarkSlice(workloads=(Workload(prompt=8),), rounds=2, minimum_seconds=0, most_seconds=1),
        options=OPTIONS,
    )
    assert results["models"]["smaller"]["perplexity"] == found["smaller"].value
    assert results == json.loads((tmp_path / "timings" / "results.json").read_text())
    assert {event.kind for event in told} == {"progress", "note", "gate", "stage_started", "stage_finished"}


def test_report_is_drawn_again_the_same(values, tmp_path):
    result = api.run(values, tmp_path / "run", options=OPTIONS)
    again = api.report(tmp_path / "run", tmp_path / "again")
    assert again.read_bytes() == result.page.read_bytes()
    assert api.package(values, tmp_path / "run", options=OPTIONS) == result.package


STEPS = {"prune": {"steps": [{"budget": {"ffn": {"remove": 0.5}}}]}}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda model, out: api.rebuild(model, model, out, profile="deci"), "no shape profile 'deci'"),
        (lambda model, out: api.rebuild(model, model, out), r"plan\.json does not exist"),
        (lambda model, out: api.export("nowhere", out), "no model 'nowhere'"),
        (lambda model, out: api.export(model, out, recipe=ExportSlice(precision="bf16")), "no bf16 kernel"),
        (lambda model, out: api.evaluate(model, text="none.txt"), r"no text file none\.txt"),
        (lambda model, out: api.bench(model, {}, out), "model"),
        (lambda model, out: api.bench(model, {"dense": model}, out), "'dense'"),
        (lambda model, out: api.report(model, out), r"holds no report\.json"),
        (lambda model, out: api.run({"prune": 3}, out), "'prune'"),
        (lambda model, out: api.run("none.yaml", out), r"no recipe none\.yaml"),
        (lambda model, out: api.run({"model": "nowhere", **STEPS}, out), "no model 'nowhere'"),
        (lambda model, out: api.run({"model": str(model), "text": {"evaluation": "none.txt"}, **STEPS}, out), r"no text file none\.txt"),
        (lambda model, out: api.run({"model": str(model), **STEPS}, model), r"model is no run's folder: it holds config\.json"),
    ],
)
def test_what_a_caller_can_mend_is_a_trimline_error(inputs, tmp_path, call, match):
    with pytest.raises(TrimlineError, match=match):
        call(inputs / "model", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert not (inputs / "model" / "store").exists()


def test_a_page_of_somebody_else_is_not_replaced(inputs, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(TrimlineError, match=r"is no run's folder: it holds report\.html"):
        api.run({"model": str(inputs / "model"), **STEPS}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_run_that_has_not_finished_has_no_report_yet(tmp_path):
    (tmp_path / "run" / "store").mkdir(parents=True)
    with pytest.raises(TrimlineError, match="the run in it has not finished"):
        api.report(tmp_path / "run", tmp_path / "again")
