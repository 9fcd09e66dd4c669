"""`trimline package --for`: on a recipe, on a package, and what it refuses before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import benchmarks.stage
from deploy.verify import verify
from tests.end_to_end.scenario import InProcess, assert_refused, changed, recipe, tiny_inputs, trimline, written

SETTINGS = ("--threads", 1, "--json")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a recipe and its run, packaged for one server."""
    folder = tmp_path_factory.mktemp("run")
    path = written(recipe("cfsp-least-squares", tiny_inputs(folder / "inputs")), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        called = trimline("package", path, "-o", folder / "out", "--for", "onnxruntime-genai", *SETTINGS)
    assert called.code == 0, called.stderr
    assert called.answer["package"] == str(folder / "out" / "package")
    return folder


def test_a_recipes_package_has_the_servers_of_the_command(run):
    package = run / "out" / "package"
    assert (package / "serve" / "onnxruntime-genai" / "compose.yaml").is_file()
    assert yaml.safe_load((package / "recipe.yaml").read_text())["package"]["targets"] == ["onnxruntime-genai"]
    assert verify(package.resolve()) == []


def test_a_package_is_copied_with_one_more(run, tmp_path):
    called = trimline("package", run / "out" / "package", "--for", "triton", "-o", tmp_path / "new", *SETTINGS)
    assert called.code == 0, called.stderr
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["targets"] == ["onnxruntime-genai", "triton"]
    assert trimline("verify", tmp_path / "new").code == 0


def test_a_package_without_a_server_to_add(run, tmp_path):
    assert_refused(trimline("package", run / "out" / "package", "-o", tmp_path / "new"), "is a package already", "--for triton")
    assert not (tmp_path / "new").exists()


def test_a_server_that_there_is_none_of(run, tmp_path):
    for what in (run / "recipe.yaml", run / "out" / "package"):
        called = trimline("package", what, "--for", "tritom", "-o", tmp_path / "new")
        assert_refused(called, "no target 'tritom'", "Did you mean 'triton'?")
    assert not (tmp_path / "new").exists()


def test_a_target_in_the_recipe_that_there_is_none_of(run, tmp_path):
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    path = written(changed(values, "package", "targets", to=["tritom"]), tmp_path)
    assert_refused(trimline("run", path, "-o", tmp_path / "out"), "package.targets", "tritom")


def test_what_a_server_cannot_have_is_refused_before_pruning(run, tmp_path):
    inputs = tiny_inputs(tmp_path / "inputs")
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    without = changed(changed(values, "package", "targets", to=["triton"]), "package", "onnx", to=False)
    assert_refused(trimline("run", written(without, tmp_path), "-o", tmp_path / "out"), "package.onnx is false")
    (inputs / "model" / "tokenizer.json").rename(inputs / "model" / "other.json")
    slow = changed(changed(values, "package", "targets", to=["kserve"]), "model", to=str(inputs / "model"))
    called = trimline("run", written(slow, tmp_path), "-o", tmp_path / "out")
    assert_refused(called, "triton cannot serve this model", "tokenizer.json")
    assert {path.name.split("-")[0] for path in (tmp_path / "out" / "store").glob("*-*")} <= {"source", "text"}
