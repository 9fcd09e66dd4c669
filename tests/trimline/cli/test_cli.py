"""Every verb of the command line: its help, its JSON, and each on the folder that the one before it left."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import benchmarks.stage
from deploy.targets import TARGETS
from tests.end_to_end.scenario import (
    Called,
    InProcess,
    assert_refused,
    changed,
    command,
    recipe,
    tiny_inputs,
    trimline,
    written,
)
from trimline.cli.app import EXAMPLES, app
from trimline.starting.clients import CLIENTS

VERBS = tuple(verb.__name__ for verb in EXAMPLES)
SETTINGS = ("--threads", 1, "--json")


@pytest.fixture(scope="module", autouse=True)
def _quick_measuring():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        yield


class Chain:
    """Verbs called one after another; what each left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = tiny_inputs(folder / "inputs")
        self.recipe = written(recipe("cfsp-least-squares", self.inputs), folder)
        self.model, self.evaluation = self.inputs / "model", self.inputs / "evaluation.txt"
        self.called: dict[str, Called] = {}

    def call(self, name: str, *arguments: object) -> None:
        self.called[name] = trimline(*arguments)

    def run(self) -> None:
        at, windows = self.folder, ("--text", self.evaluation, "--windows", 4, "--window", 32)
        self.call("run", "run", self.recipe, "-o", at / "run", *SETTINGS)
        self.call("prune", "prune", self.recipe, "-o", at / "plan", *SETTINGS)
        self.call("rebuild", "rebuild", self.model, at / "plan", "-o", at / "smaller", "--profile", "decilm", *SETTINGS)
        self.call("evaluate", "evaluate", at / "smaller", *windows, *SETTINGS)
        self.call("export", "export", at / "smaller", "-o", at / "onnx", *SETTINGS)
        self.call("export dense", "export", self.model, "-o", at / "onnx-dense", *SETTINGS)
        accuracy = ("--perplexity", "dense=30.5", "--perplexity", f"onnx={self.called['evaluate'].answer['value']}")
        timed = ("--recipe", self.recipe, "--rounds", 2)
        self.call("bench", "bench", at / "onnx-dense", at / "onnx", "-o", at / "timings", *accuracy, *timed, *SETTINGS)
        self.call("report", "report", at / "run", "-o", at / "report", "--json")
        self.call("package", "package", self.recipe, "-o", at / "run", *SETTINGS)
        self.call("inspect", "inspect", at / "smaller", "--json")
        self.call("inspect plan", "inspect", at / "plan", "--source", self.model, "--json")
        self.call("inspect onnx", "inspect", at / "onnx", "--json")
        self.call("verify", "verify", at / "run" / "package", "--json")
        self.call("doctor", "doctor", "--json")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, _quick_measuring) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("chain"))
    chain.run()
    return chain


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python allows."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_help_lists_every_verb():
    shown = trimline("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in shown
    bare = trimline()
    assert "prune" in bare.stdout + bare.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_says_what_everything_is(verb):
    called = trimline(verb, "--help")
    assert called.code == 0
    assert ("--json" in called.stdout) == (verb != "serve")
    lines = called.stdout.splitlines()
    assert lines[0].startswith(f"Usage: trimline {verb} ") or f" {verb} " in lines[0]
    assert lines[2].strip()[0].isupper()
    entries = [line for line in called.stdout.splitlines() if line.startswith("  -") and not line.strip().startswith("-h,")]
    bare = [line for line in entries if len(line.split("  ")) < 2]
    assert not bare, bare


@pytest.mark.parametrize(("verb", "line"), [(verb.__name__, line) for verb, line in EXAMPLES.items()])
def test_help_of_a_verb_ends_with_a_line_to_copy(verb, line):
    assert [part.strip() for part in trimline(verb, "--help").stdout.splitlines()[-2:]] == ["Example:", line]
    assert len(line) < 120
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("trimline", verb)
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, arguments)  # a usage error where an option or an argument is not there


def test_help_names_the_servers():
    for verb, names in (("package", TARGETS), ("new", CLIENTS)):  # lines break at hyphens, too
        assert ",".join(names) in "".join(trimline(verb, "--help").stdout.split())


def test_all_verbs_succeed(chain):
    assert {name: called.stderr for name, called in chain.called.items() if called.code} == {}


def test_json_is_all_that_stdout_holds(chain):
    for name, called in chain.called.items():
        lines = called.stdout.splitlines()
        assert len(lines) == 1, name
        assert isinstance(strict(lines[0]), dict), name


def test_without_json_stdout_is_for_people(chain):
    called = trimline("inspect", chain.folder / "plan")
    assert called.code == 0
    assert "plan for llama" in called.stdout
    with pytest.raises(json.JSONDecodeError):
        strict(called.stdout.splitlines()[-1])


def test_the_stages_alone_make_what_the_run_makes(chain):
    model, onnx = (chain.folder / "run" / "package" / name for name in ("model", "onnx"))
    for ours, theirs in ((chain.folder / "smaller", model), (chain.folder / "onnx", onnx)):
        for path in sorted(theirs.iterdir()):
            assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
    pruned = chain.called["run"].answer["models"]["pruned"]
    assert chain.called["evaluate"].answer["value"] == pruned["perplexity"]["value"]
    assert chain.called["inspect"].answer["parameters"] == pruned["parameters"]
    assert chain.called["inspect plan"].answer["parameters"] == pruned["parameters"]


def test_what_the_verbs_answer(chain):
    answers = {name: called.answer for name, called in chain.called.items()}
    assert sum(answers["prune"]["ffn"]) == 4 * 48
    assert answers["rebuild"]["folder"] == str(chain.folder / "smaller")
    assert {row["model"] for row in answers["bench"]["comparisons"]} == {"onnx"}
    assert (chain.folder / "report" / "report.html").stat().st_size > 1000
    assert Path(answers["package"]["package"]).resolve().is_dir()
    assert answers["verify"]["problems"] == []
    assert answers["doctor"]["findings"]
    rounds = json.loads((chain.folder / "timings" / "results.json").read_text())["recipe"]
    assert (rounds["rounds"], len(rounds["workloads"])) == (2, 2)


def test_verify_finds_what_changed(chain, tmp_path):
    folder = shutil.copytree(chain.folder / "run" / "package", tmp_path / "package")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "plan.json").unlink()
    (folder / "new.txt").write_text("new")
    called = trimline("verify", folder, "--json")
    assert called.code == 1
    assert [problem.split(":")[0] for problem in called.answer["problems"]] == ["model/config.json", "plan.json", "new.txt"]


def test_verify_of_what_is_no_package(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert_refused(trimline("verify", tmp_path), "manifest.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rebuild", "MODEL", "PLAN", "-o", "OUT", "--profile", "uniform"), ("'uniform'", "block")),
        (("rebuild", "MODEL", "MODEL", "-o", "OUT"), ("plan.json",)),
        (("rebuild", "MODEL", "SMALLER", "-o", "OUT"), ("updates.safetensors", "trimline prune")),
        (("rebuild", "OTHER", "PLAN", "-o", "OUT", "--profile", "decilm"), ("block", "plan")),
        (("export", "MODEL", "-o", "OUT", "--precision", "bf16"), ("bf16", "processor")),
        (("evaluate", "MODEL", "--text", "none.txt"), ("none.txt",)),
        (("evaluate", "MODEL", "--text", "TEXT", "--windows", "9999"), ("9999 windows", "the text has")),
        (("bench", "MODEL", "ONNX", "-o", "OUT", "--perplexity", "dense=3", "--perplexity", "onnx=4"), ("model",)),
        (("bench", "ONNX", "ONNX", "ONNX", "-o", "OUT"), ("both called 'onnx'",)),
        (("bench", "ONNX", "ONNX", "-o", "OUT"), ("--perplexity", "trimline evaluate")),
        (("bench", "ONNX", "ONNX", "-o", "OUT", "--perplexity", "dense=much"), ("'dense=much'",)),
        (("bench", "ONNX", "ONNX", "-o", "OUT", "--perplexity", "dense=nan"), ("'dense=nan'",)),
        (("bench", "ONNX", "ONNX", "-o", "OUT", "--perplexity", "sparse=3"), ("'sparse'", "dense, onnx")),
        (("report", "MODEL", "-o", "OUT"), ("report.json",)),
        (("inspect", "nowhere"), ("nowhere",)),
    ],
)
def test_a_verb_that_cannot_do_it_says_why(chain, tmp_path, arguments, words):
    other = tmp_path / "other"
    if "OTHER" in arguments:
        tiny_inputs(other, num_hidden_layers=2)
    places = {
        **{"MODEL": chain.model, "PLAN": chain.folder / "plan", "SMALLER": chain.folder / "smaller", "TEXT": chain.evaluation},
        **{"ONNX": chain.folder / "onnx", "OUT": tmp_path / "made" / "out", "OTHER": other / "model"},
    }
    assert_refused(trimline(*(places.get(argument, argument) for argument in arguments)), *words)
    assert not list(tmp_path.glob("made/*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rebuild", "m", "p", "-o", "o", "--profile", "deci"), ("--profile", "'deci'", "'decilm'")),
        (("export", "m", "-o", "o", "--lowering", "fast"), ("--lowering", "'fast'", "'fused'")),
        (("run", "r.yaml", "--threads", "0"), ("--threads",)),
        (("run",), ("recipe",)),
        (("prun",), ("prun",)),
    ],
)
def test_wrong_usage(arguments, words):
    called = trimline(*arguments)
    assert called.code == 2
    assert all(word in called.stderr for word in words), called.stderr
    assert "Traceback" not in called.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: (plan / "plan.json").write_text("{}"), ("plan.json", "format None")),
        (lambda plan: (plan / "plan.json").write_text('{"format": 1}'), ("plan.json", "no plan")),
        (lambda plan: (plan / "updates.safetensors").write_bytes(b"123"), ("updates.safetensors", "corrupt")),
        (lambda plan: edit(plan, blocks="0-99999999999"), ("plan.json", "no plan")),
        (lambda plan: edit(plan, blocks="3-1"), ("plan.json", "no plan")),
        (lambda plan: edit(plan, ffn=["0-7"]), ("plan",)),
        (lambda plan: edit(plan, ffn=["0-200"] * 4), ("plan",)),
        (lambda plan: edit(plan, family="gpt5"), ("gpt5",)),
    ],
)
def test_a_damaged_plan_is_refused(chain, tmp_path, damage, words):
    plan = shutil.copytree(chain.folder / "plan", tmp_path / "plan")
    damage(plan)
    assert_refused(trimline("rebuild", chain.model, plan, "-o", tmp_path / "out", "--profile", "free"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def edit(plan: Path, **values: Any) -> None:
    document = json.loads((plan / "plan.json").read_text())
    (plan / "plan.json").write_text(json.dumps(document | values))


def test_json_and_an_error(tmp_path):
    called = trimline("run", tmp_path / "none.yaml", "-o", tmp_path / "out", "--json")
    assert_refused(called, "none.yaml")
    assert called.stdout == ""


def test_debug_shows_the_traceback(tmp_path):
    called = trimline("run", tmp_path / "none.yaml", "-o", tmp_path / "out", "--debug")
    assert "Traceback" in called.stderr
    assert called.stderr.splitlines()[-1].startswith("error: ") or "error: There is no recipe" in called.stderr


def test_an_unforeseen_fault_is_a_sentence_too(tmp_path, monkeypatch):
    monkeypatch.setattr("trimline.recipe.read_recipe", lambda path: 1 / 0)
    called = trimline("run", tmp_path / "none.yaml", "-o", tmp_path / "out")
    assert called.code == 70
    assert "error: Something went wrong inside (ZeroDivisionError: division by zero). Run again with --debug" in called.stderr


def test_allowed_overlap_is_stated_in_the_report(tmp_path):
    inputs = tiny_inputs(tmp_path / "inputs")
    values = changed(recipe("cfsp-least-squares", inputs), "text", "evaluation", to=str(inputs / "calibration.txt"))
    path = written(changed(values, "text", "allow_overlap", to=True), tmp_path)
    called = trimline("run", path, "-o", tmp_path / "out", *SETTINGS)
    assert called.code == 0, called.stderr
    package = tmp_path / "out" / "package"
    assert "100% of the evaluation text also stands in the calibration text" in (package / "report.md").read_text()
    assert yaml.safe_load((package / "recipe.yaml").read_text())["text"]["allow_overlap"] is True


def test_the_console_script_starts_without_torch(tmp_path):
    """``--help`` has to be quick."""
    script = "import sys; from trimline.cli.app import app; app(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    done = subprocess.run([command()[0], "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prune" in done.stdout


@pytest.mark.parametrize("bar", ["2e7", "inf"])
def test_a_perplexity_bar_that_is_none_is_a_sentence(tmp_path: Path, bar: str) -> None:
    called = trimline("export", tmp_path, "-o", tmp_path / "out", "--perplexity-bar", bar)
    assert_refused(called, "'export.perplexity_bar'", bar.replace("2e7", "20000000.0"))
    assert not (tmp_path / "out").exists()
