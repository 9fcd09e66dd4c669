"""``make gpu``: its steps are sound, DRY checks them, and a machine without a GPU gets one sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.studies.gpu import __main__ as program
from benchmarks.studies.gpu.steps import RUNTIMES, GpuStep, recipe_file, recipe_text, steps
from pipeline.common.driver import cuda_devices
from tests.tiny import tiny_model
from trimline.recipe import parse_recipe

ROOT = Path(__file__).parents[4]


def test_every_recipe_is_a_whole_recipe_and_the_dense_lane_is_shared(tmp_path):
    recipes = [parse_recipe(recipe_text(step)) for step in steps("default", tmp_path, "python3") if step.recipe]
    assert len(recipes) == sum(map(len, RUNTIMES.values()))
    fused = [recipe for recipe in recipes if recipe.export.lowering == "fused"]
    assert [(recipe.benchmark.runtime, recipe.build) for recipe in fused] == [("onnxruntime_cuda", None)]
    assert len({json.dumps(recipe.export.model_dump(mode="json")) for recipe in recipes if recipe not in fused}) == 1
    assert {recipe.export.precision for recipe in recipes} == {"fp16"}
    assert {recipe.build.builder for recipe in recipes if recipe.build} == {"tensorrt"}
    assert {recipe.benchmark.runtime for recipe in recipes} == {
        *("tensorrt", "onnxruntime_cuda", "onnxruntime_tensorrt", "torch", "torch_compile", "torch_2_4")
    }
    patterns = {step.pattern for recipe in recipes for step in recipe.prune.steps}
    assert "2:4" in patterns


def test_tensorrt_11_leaves_out_what_links_10(tmp_path):
    names = [step.name for step in steps("default", tmp_path, "python3", tensorrt=11)]
    assert not any("onnxruntime_tensorrt" in name for name in names)
    assert any("tensorrt-cu13>=11,<12" in step.command for step in steps("default", tmp_path, "python3", tensorrt=11))


def test_without_tensorrt_nothing_needs_it():
    todo = steps("default", Path("out"), "python3", tensorrt=None)
    assert not any("tensorrt" in argument for step in todo for argument in step.command)
    runtimes = [step.recipe["benchmark"]["runtime"] for step in todo if step.recipe]
    assert runtimes == [name for variant in RUNTIMES.values() for name in variant if "tensorrt" not in name]
    assert not any("build" in step.recipe for step in todo if step.recipe)


def test_here_installs_nothing(tmp_path):
    todo = steps("default", tmp_path, "python3", here=True)
    assert not any("pip" in step.command or "venv" in step.command for step in todo)
    assert {step.command[0] for step in todo if step.command} == {"python3"}


def test_single_steps_are_taken_and_unknown_ones_refused(tmp_path, capsys):
    arguments = ["--dry", "--here", "--output", str(tmp_path / "out")]
    assert program.main([*arguments, "--only", "doctor", "--only", "pruned torch"]) == 0
    shown = capsys.readouterr().out
    assert "[1/2] doctor" in shown
    assert "[2/2] pruned torch:" in shown
    with pytest.raises(SystemExit) as refused:
        program.main([*arguments, "--only", "engines"])
    assert refused.value.code == 2
    assert "there is no step 'engines'; the steps are driver, doctor, tests, pruned tensorrt" in capsys.readouterr().err


def test_the_steps_need_the_standard_library_only():
    code = "import sys; sys.path.insert(0, '.'); import benchmarks.studies.gpu; print([n for n in sys.modules if n in sys.argv[1:]])"
    heavy = ["torch", "numpy", "pydantic", "yaml", "typer", "onnx"]
    said = subprocess.run([sys.executable, "-I", "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_dry_prints_and_checks_every_step(tmp_path, capsys):
    assert program.main(["--dry", "--output", str(tmp_path / "out"), "--model", "org/model-8b"]) == 0
    shown = capsys.readouterr().out
    for step in steps("org/model-8b", tmp_path / "out", sys.executable):
        assert f"{step.name}: {step.why}" in shown
    assert "extras gpu,dev" in shown
    assert "tests are marked gpu and can be collected" in shown
    assert "recipe 'pruned-2-4, torch_2_4'" in shown
    assert "Nothing was run" in shown
    assert not (tmp_path / "out").exists()


def test_fp16_is_the_default_of_make_too():
    said = subprocess.run(["make", "--dry-run", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--precision fp16" in said.stdout


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("default", "checked: model default, which a step installs"),
        ("org/model-8b", "checked: model org/model-8b: a hub id, which was not looked up"),
        ("{folder}/good", r"checked: model .*/good: a folder, llama of [\d,]+ parameters"),
        ("{folder}/empty", r"wrong: model .*/empty: .*config\.json does not exist"),
        ("{folder}/bare", r"wrong: model .*/bare: .*holds no safetensors file"),
        ("{folder}/foreign", r"wrong: model .*/foreign: .*bert"),
        ("{folder}/nowhere", "wrong: model .*/nowhere: There is no model '.*/nowhere'. Give 'default', a Hugging Face folder"),
        ("not a name", "wrong: model not a name: There is no model 'not a name'"),
    ],
)
def test_dry_looks_at_the_model_once(tmp_path, model, line):
    tiny_model("llama", tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "foreign")
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    shutil.copy(tmp_path / "good" / "config.json", tmp_path / "bare")
    said: list[str] = []
    todo = [step for step in steps(model.format(folder=tmp_path), tmp_path / "out", "python3") if step.recipe][:2]
    assert program.dry(todo, tmp_path / "out", said.append) == int(line.startswith("wrong"))
    assert re.fullmatch(line + ".*", said[0]), said[0]
    assert sum(text.startswith(("wrong: model", "checked: model")) for text in said) == 1


def test_dry_finds_what_is_wrong(tmp_path):
    said: list[str] = []
    bad = dict(steps("default", tmp_path, "python3")[-1].recipe or {}) | {"export": {"lowering": "sideways"}}
    todo = [
        GpuStep("packages", "why", ("python3", "-m", "pip", "install", ".[gpu,nothing]", "not a requirement!")),
        GpuStep("module", "why", ("python3", "-m", "trimline.no_such_module")),
        GpuStep("run", "why", ("python3", "-m", "trimline.cli"), recipe=bad),
    ]
    assert program.dry(todo, tmp_path, said.append) == 1
    wrong = [line.strip() for line in said if line.strip().startswith("wrong")]
    starts = ("extras gpu,nothing", "requirement not a", "module trimline.no_such_module", f"recipe '{bad['name']}'")
    assert all(line.startswith(f"wrong: {start}") for line, start in zip(wrong, starts, strict=True)), wrong
    assert said[-1] == "4 things are wrong."


@pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")
def test_without_a_gpu_nothing_is_begun(tmp_path, capsys):
    assert program.main(["--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().out
    assert "error: driver: this machine has no NVIDIA driver" in shown
    assert shown.count("[") == 1
    assert json.loads((tmp_path / "out" / "steps.json").read_text())[0]["problem"]


def test_what_fails_is_said_and_the_rest_goes_on(tmp_path):
    said: list[str] = []
    python, out = sys.executable, tmp_path / "out"
    build = out / "store" / "build-1"
    build.mkdir(parents=True)
    (build / "build.log").write_text("a real log")
    (out / "report.html").write_text("page")
    todo = [
        GpuStep("fails", "first", (python, "-c", "print('what went wrong'); raise SystemExit(4)")),
        GpuStep("goes on", "second", (python, "-c", "print('fine')"), recipe={"name": "x"}, keep={"report.html": "report-x.html"}),
    ]
    assert program.take(todo, out, said.append) == 1
    assert any(line.startswith("failed: fails: what went wrong (exit status 4;") for line in said)
    assert "1 of 2 steps succeeded" in said[-1]
    assert yaml.safe_load(recipe_file(out, todo[1]).read_text()) == {"name": "x"}
    assert (out / "report-x.html").read_text() == "page"
    assert (out / "logs" / "goes-on.log").read_text() == "fine\n"
    assert (out / "samples" / "build-1" / "build.log").read_text() == "a real log"


def test_an_essential_step_ends_it(tmp_path):
    said: list[str] = []
    todo = [GpuStep("first", "why", (sys.executable, "-c", "raise SystemExit(1)"), essential=True), GpuStep("second", "why", ("never",))]
    assert program.take(todo, tmp_path, said.append) == 1
    assert [entry["step"] for entry in json.loads((tmp_path / "steps.json").read_text())] == ["first"]
