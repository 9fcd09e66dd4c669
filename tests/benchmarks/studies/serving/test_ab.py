"""Two servers, compared by their client: the arithmetic on made-up times, and the whole against real servers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.studies.serving.ab import SMALLER, figures, main, rows
from benchmarks.studies.serving.load import LoadRun
from benchmarks.studies.serving.request import RequestSample
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.common.errors import TrimlineError
from tests.deploy.serve.conftest import serving, tiny_checkpoint, tiny_onnx  # noqa: F401 - fixtures

ASKED = ["--rounds", "3", "--requests", "2", "--words", "3", "--tokens", "6", "--ignore-eos"]


def compared(*arguments: str):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


def test_a_round_is_told_by_medians_and_a_failure_ends_it():
    samples = [RequestSample(0, (0.2, 0.3, 0.5), 7, 4), RequestSample(0, (0.4, 1.0), 7, 4), RequestSample(0, (0.1,), 7, 1)]
    found = figures(LoadRun(1, 3.0, samples, []))
    assert found == pytest.approx({"TTFT": 0.2, "latency": 0.5, "TPOT": 0.15, "wall time / output tokens": 3 / 9})
    assert "TPOT" not in figures(LoadRun(1, 3.0, samples[-1:], []))
    with pytest.raises(TrimlineError, match=r"1 requests of a round failed \(500: x\)"):
        figures(LoadRun(1, 3.0, samples, ["500: x"]))


@pytest.mark.parametrize(
    ("smaller", "again", "outcome"),
    [(0.5, 1.0, "faster"), (1.25, 1.0, "slower"), (0.5, 1.1, "not resolved")],
)
def test_who_is_faster_is_said_where_the_first_agrees_with_itself(smaller, again, outcome):
    base = [1 + 0.01 * (number % 5) for number in range(30)]
    (row,) = rows({"TTFT": {DENSE: base, SMALLER: [smaller * s for s in base], CONTROL: [again * s for s in base]}})
    assert row[:2] == ["TTFT", "30"]
    assert row[4].startswith(f"{1 / smaller:.3f}")
    assert row[-1] == outcome


def test_two_real_servers(tiny_onnx, tmp_path: Path):  # noqa: F811
    out = tmp_path / "ab.json"
    with serving(tiny_onnx) as (first, _), serving(tiny_onnx) as (second, _):
        done = compared(f"{first}/v1", f"{second}/v1", "--output", str(out), *ASKED)
        assert done.exit_code == 0, done.output
        refused = compared(f"{first}/v1", f"{second}/v1", "--output", str(out), "--model", "gpt", *ASKED)
        assert refused.exit_code == 2
        assert "model_not_found" in refused.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert set(record["seconds"]) == {"TTFT", "TPOT", "latency", "wall time / output tokens"}
    for by_server in record["seconds"].values():
        assert {name: len(seconds) for name, seconds in by_server.items()} == {DENSE: 3, SMALLER: 3, CONTROL: 3}
    for name, of_server in record["samples"].items():
        assert [len(of_round) for of_round in of_server] == [2, 2, 2]
        medians = [median(sample["pieces"][0] for sample in of_round) for of_round in of_server]
        assert medians == pytest.approx(record["seconds"]["TTFT"][name])
    assert set(record["samples"]) == {DENSE, SMALLER, CONTROL}
    assert {server["model"] for server in record["servers"].values()} == {tiny_onnx.name}
    assert done.output.count("not resolved") == 4  # three rounds say nothing
    gone = compared(f"{first}/v1", f"{second}/v1", "--output", str(out), *ASKED)
    assert gone.exit_code == 2
    assert gone.output.startswith("error: ")
