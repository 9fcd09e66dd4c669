"""The independent client: what it times, what it says of a target, and that it holds nothing of ours."""

from __future__ import annotations

import ast
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.genai_client
import benchmarks.genai_worker
from benchmarks.genai_client import ROUNDS_PER_OPENING, app, folder_of, measured, ratios, rows
from benchmarks.timing import CONTROL, DENSE
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions
from tests.tiny import tiny_model

pytest.importorskip("onnxruntime_genai")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("exported")
    found = {}
    for name, width in (("large", 96), ("small", 32)):
        (at / name / "onnx").mkdir(parents=True)
        model = tiny_model("llama", at / f"{name}-model", intermediate_size=width)
        export(model, ExportSlice(), RunOptions(threads=1), at / name / "onnx", Events())
        found[name] = at / name
    return found


def test_every_model_is_timed_in_every_round(exported):
    seconds = measured({DENSE: folder_of(exported["large"]), "small": folder_of(exported["small"] / "onnx")}, 8, 5, rounds=6, threads=1)
    for of_phase in seconds.values():
        assert {name: len(times) for name, times in of_phase.items()} == {DENSE: 6, "small": 6, CONTROL: 6}
        assert min(min(times) for times in of_phase.values()) > 0


def test_speeds_that_were_asked_for_are_judged():
    steady = [0.1 + 0.0001 * (number % 3) for number in range(30)]
    seconds = {"decode": {DENSE: steady, "a": [time / 1.4 for time in steady], "b": [time / 1.2 for time in steady], CONTROL: steady}}
    assert [(line[0], line[5], line[6]) for line in rows(ratios(seconds), [1.41, 1.4])] == [("a", "1.41", "met"), ("b", "1.4", "missed")]
    shaken = seconds["decode"] | {CONTROL: [time * 1.1 for time in steady]}
    assert [line[6] for line in rows(ratios({"decode": shaken}), [1.4])] == ["not resolved"] * 2
    assert {line[2] for line in rows(ratios(seconds), ())} == {"30 of 10 openings"}
    shares = [number // ROUNDS_PER_OPENING % 2 * 0.2 for number in range(30)]  # an opening makes all its rounds faster
    moved = seconds["decode"] | {"a": [time / (1.31 + share) for time, share in zip(steady, shares, strict=True)]}
    assert [line[6] for line in rows(ratios({"decode": moved}), [1.41])][0] == "not resolved"
    few = {"decode": {name: times[:5] for name, times in seconds["decode"].items()}}
    assert {line[6] for line in rows(ratios(few), ())} == {"not resolved"}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_a_model_is_opened_on_as_many_threads_as_asked(exported):
    """onnxruntime-genai's own choice was one on two cores, where the benchmark's sessions had two."""

    def started(threads: int) -> int:
        before = len(list(Path("/proc/self/task").iterdir()))
        model = benchmarks.genai_worker.opened(str(exported["small"] / "onnx"), threads)
        found = len(list(Path("/proc/self/task").iterdir())) - before
        del model
        return found

    started(1)  # the library starts threads of its own with its first model
    assert started(3) - started(1) == 2


def test_the_worker_imports_nothing_of_ours():
    tree = ast.parse(Path(benchmarks.genai_worker.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"trimline", "pipeline", "exporters", "benchmarks", "deploy"}


def test_wrong_folders(exported, tmp_path):
    with pytest.raises(TrimlineError, match="There is no genai_config.json"):
        folder_of(tmp_path)
    alone = CliRunner().invoke(app, [str(exported["large"])])
    assert (alone.exit_code, alone.stderr.count("\n")) == (2, 1)
    (tmp_path / "genai_config.json").write_text('{"model": {"vocab_size": 8}}')
    broken = CliRunner().invoke(app, [str(tmp_path), str(exported["small"]), "--rounds", "2"])
    assert broken.exit_code != 0
    assert "The process that measures" in broken.stderr


def test_a_page_without_a_place_for_it_is_a_sentence(exported, tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    call = [str(exported["large"]), str(exported["small"]), "--rounds", "2", "--prompt", "4", "--output", "3"]
    done = CliRunner().invoke(app, [*call, "--threads", "1", "--raw", str(tmp_path / "raw.json"), "--page", str(tmp_path / "page.md")])
    assert (done.exit_code, "has no place for genai-client" in done.stderr) == (2, True)
    assert "| 1: " in done.stdout  # what was measured is shown all the same
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert {len(times) for of_phase in raw["seconds"].values() for times in of_phase.values()} == {2}
    assert raw["environment"]["threads"] == 1


def test_a_page_says_what_ran(tmp_path, monkeypatch):
    steady = [0.1 + 0.0001 * (number % 3) for number in range(30)]
    times = {DENSE: steady, "1: small": steady, CONTROL: steady}
    monkeypatch.setattr(benchmarks.genai_client, "measured", lambda *_: {"prefill": times, "decode": times})
    monkeypatch.setattr(benchmarks.genai_client, "folder_of", lambda path: path)
    (tmp_path / "page.md").write_text("<!-- genai-client:begin -->\n<!-- genai-client:end -->\n")
    done = CliRunner().invoke(app, ["dense", "small", "--page", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert f", onnxruntime-genai {version('onnxruntime-genai')}, " in (tmp_path / "page.md").read_text()
