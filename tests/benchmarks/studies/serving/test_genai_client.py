"""The independent client: what it times, what it says of a target, and that it holds nothing of ours."""

from __future__ import annotations

import ast
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.studies.serving.genai_client
import benchmarks.studies.serving.genai_worker
from benchmarks.studies.serving.genai_client import ROUNDS_PER_OPENING, app, folder_of, measured, rows, seen
from benchmarks.timing.timing import CONTROL, DENSE
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
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


STEADY = [0.1 + 0.0001 * (number % 3) for number in range(30)]


def judged(decode: dict[str, list[float]], asked: tuple[float, ...] = ()) -> list[list[str]]:
    """What is said of decoding in one run; models are told apart by their names here."""
    run = {"models": {name: name for name in decode if name != CONTROL}, "seconds": {"prefill": decode, "decode": decode}}
    return [line for line in rows(seen([run], run["models"]), asked) if line[1] == "decode"]


def test_speeds_that_were_asked_for_are_judged():
    times = {DENSE: STEADY, "a": [time / 1.4 for time in STEADY], "b": [time / 1.2 for time in STEADY], CONTROL: STEADY}
    assert [(line[0], line[5], line[6]) for line in judged(times, (1.41, 1.4))] == [("a", "1.41", "met"), ("b", "1.4", "missed")]
    shaken = times | {CONTROL: [time * 1.1 for time in STEADY]}
    assert [line[6] for line in judged(shaken, (1.4,))] == ["not resolved"] * 2
    assert {line[2] for line in judged(times)} == {"30 of 10 openings"}
    shares = [number // ROUNDS_PER_OPENING % 2 * 0.2 for number in range(30)]  # an opening makes all its rounds faster
    moved = times | {"a": [time / (1.31 + share) for time, share in zip(STEADY, shares, strict=True)]}
    assert judged(moved, (1.41,))[0][6] == "not resolved"
    assert {line[6] for line in judged({name: some[:5] for name, some in times.items()})} == {"not resolved"}


def test_runs_of_the_same_files_count_together_whatever_the_folders_are_called():
    def run(name: str, speed: float, dense: str = "d") -> dict[str, object]:
        times = {DENSE: STEADY[:28], name: [time / speed for time in STEADY[:28]], CONTROL: STEADY[:28]}
        return {"models": {DENSE: dense, name: "m"}, "seconds": {"prefill": times, "decode": times}}

    runs = [run("1: a", 1.3), run("2: b", 1.5), run("1: a", 9.0, dense="another")]
    (prefill, decode) = seen(runs, {DENSE: "d", "1: now": "m"})
    assert (prefill.phase, decode.name, decode.ratio.openings, decode.ratio.rounds) == ("prefill", "1: now", 20, 56)
    assert decode.ratio.value == pytest.approx((1.3 * 1.5) ** 0.5, rel=1e-3)
    with pytest.raises(TrimlineError, match="no rounds of 1: other yet"):
        seen(runs, {DENSE: "d", "1: other": "x"})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_a_model_is_opened_on_as_many_threads_as_asked(exported):
    """onnxruntime-genai's own choice was one on two cores, where the benchmark's sessions had two."""

    def started(threads: int) -> int:
        before = len(list(Path("/proc/self/task").iterdir()))
        model = benchmarks.studies.serving.genai_worker.opened(str(exported["small"] / "onnx"), threads)
        found = len(list(Path("/proc/self/task").iterdir())) - before
        del model
        return found

    started(1)  # the library starts threads of its own with its first model
    assert started(3) - started(1) == 2


def test_the_worker_imports_nothing_of_ours():
    tree = ast.parse(Path(benchmarks.studies.serving.genai_worker.__file__).read_text(encoding="utf-8"))
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
    (run,) = json.loads((tmp_path / "raw.json").read_text())["runs"]
    assert {len(times) for of_phase in run["seconds"].values() for times in of_phase.values()} == {2}
    assert run["environment"]["threads"] == 1


def test_a_raw_file_is_gone_on_with(exported, tmp_path):
    raw = tmp_path / "raw.json"
    call = [str(exported["large"]), str(exported["small"]), "--output", "3", "--threads", "1", "--raw", str(raw)]
    none = CliRunner().invoke(app, [*call, "--prompt", "4", "--rounds", "0"])
    assert (none.exit_code, "There are no rounds of 1: small yet" in none.stderr) == (2, True)
    for _ in range(2):
        assert CliRunner().invoke(app, [*call, "--prompt", "4", "--rounds", "4"]).exit_code == 0
    drawn = CliRunner().invoke(app, [*call, "--prompt", "4", "--rounds", "0"])
    assert drawn.stdout.count("8 of 4 openings") == 2
    other = CliRunner().invoke(app, [*call, "--prompt", "5", "--rounds", "4"])
    assert (other.exit_code, "have another prompt" in other.stderr) == (2, True)
    raw.write_text('{"seconds": {}}')
    wrong = CliRunner().invoke(app, [*call, "--prompt", "4", "--rounds", "4"])
    assert (wrong.exit_code, "holds no rounds of this command" in wrong.stderr) == (2, True)


def test_a_page_says_what_ran(tmp_path, monkeypatch):
    times = {DENSE: STEADY, "1: small": STEADY, CONTROL: STEADY}
    monkeypatch.setattr(benchmarks.studies.serving.genai_client, "measured", lambda *_, seed: {"prefill": times, "decode": times})
    monkeypatch.setattr(benchmarks.studies.serving.genai_client, "folder_of", lambda path: path)
    (tmp_path / "page.md").write_text("<!-- genai-client:begin -->\n<!-- genai-client:end -->\n")
    done = CliRunner().invoke(app, ["dense", "small", "--page", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert f", onnxruntime-genai {version('onnxruntime-genai')}, " in (tmp_path / "page.md").read_text()
