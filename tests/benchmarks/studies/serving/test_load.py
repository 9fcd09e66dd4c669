"""Load measured by a client: the arithmetic on made-up times, and the whole against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks.studies.serving.load import LoadRun, page, prompts
from benchmarks.studies.serving.request import RequestSample
from pipeline.common.errors import TrimlineError
from tests.benchmarks.studies.serving.local_server import answering
from tests.deploy.serve.conftest import ROOT, serving, tiny_checkpoint, tiny_onnx  # noqa: F401 - fixtures

SAMPLE = RequestSample(0.5, (0.2, 0.3, 0.5), 7, 4)


def test_times_of_a_request() -> None:
    assert (SAMPLE.ttft, SAMPLE.latency) == (0.2, 0.5)
    assert SAMPLE.tpot == pytest.approx(0.1)
    assert SAMPLE.gaps == pytest.approx([0.1, 0.2])
    assert RequestSample(0, (0.2,), 7, 1).tpot is None


def test_a_run_adds_up_and_says_what_it_cannot_tell() -> None:
    run = LoadRun(2, 2.0, [SAMPLE, RequestSample(0, (0.1,), 7, 1)], ["500: x"])
    assert run.tokens_per_second == 2.5
    found = run.summaries()
    assert {name: summary.n for name, summary in found.items()} == {"ttft": 2, "tpot": 1, "itl": 2, "latency": 2}
    assert found["ttft"].mean == pytest.approx(0.15)
    assert all(summary.p99 is None for summary in found.values())
    said = page(run)
    assert "n/a (n=2)" in said
    assert "2 answered, 1 failed" in said
    assert "failed: 500: x" in said
    assert "too short" in said
    assert not LoadRun(1, 3.0, [SAMPLE] * 10, []).too_short


def test_a_hundred_samples_have_a_p99() -> None:
    assert "n/a" not in page(LoadRun(1, 10, [SAMPLE] * 100, []))


def test_every_prompt_is_another() -> None:
    assert prompts("a b c d e", 2, 2) == ["a b", "c d"]
    with pytest.raises(TrimlineError, match="6 words; the text has 5"):
        prompts("a b c d e", 2, 3)


def measured(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path / "served.json"
    command = [sys.executable, "-m", "benchmarks.studies.serving.load", *arguments, "--output", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False), out


def test_a_real_server_is_measured(tiny_onnx: Path, tmp_path: Path) -> None:  # noqa: F811
    with serving(tiny_onnx) as (url, _):
        options = ["--requests", "100", "--concurrency", "1", "--concurrency", "8", "--words", "3", "--tokens", "12", "--ignore-eos"]
        done, out = measured(tmp_path, f"{url}/v1", *options)
        assert done.returncode == 0, done.stderr
        record = json.loads(out.read_text(encoding="utf-8"))
        assert record["workload"]["model"] == tiny_onnx.name
        for run, clients in zip(record["runs"], (1, 8), strict=True):
            samples = [RequestSample(**sample) for sample in run["samples"]]
            assert (run["concurrency"], len(samples), run["failures"]) == (clients, 100, [])
            assert {sample.output_tokens for sample in samples} == {12}
            assert all(0 < sample.ttft <= sample.latency <= run["seconds"] for sample in samples)
            assert run["summaries"]["ttft"]["p99"] is not None
            assert run["output_tokens_per_second"] == pytest.approx(1200 / run["seconds"])
            assert f"Concurrency {clients}: 100 answered, 0 failed" in done.stdout
        refused, _ = measured(tmp_path, f"{url}/v1", "--model", "gpt", "--words", "3")
        assert refused.returncode == 2
        assert "model_not_found" in refused.stderr
        assert refused.stderr.count("\n") == 1


class _Broken(BaseHTTPRequestHandler):
    """Streams that break off, except the first."""

    answers = 0

    def do_POST(self) -> None:
        type(self).answers += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'data: {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n')
        if type(self).answers == 1:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def broken() -> Iterator[str]:
    with answering(_Broken) as address:
        yield f"{address}/v1"


def test_requests_that_fail_are_counted_and_fail_the_command(broken: str, tmp_path: Path) -> None:
    done, out = measured(tmp_path, broken, "--model", "x", "--requests", "3", "--words", "2", "--warm-up", "1", "--concurrency", "1")
    assert done.returncode == 1
    assert "0 answered, 3 failed" in done.stdout
    assert json.loads(out.read_text(encoding="utf-8"))["runs"][0]["failures"] == ["the stream ended before [DONE]"] * 3


@pytest.mark.parametrize(
    ("url", "folder", "words"),
    [("http://127.0.0.1:1/v1", "nowhere", "nowhere does not exist, so out.json"), ("http://host:port/v1", "", "is no URL")],
)
def test_what_cannot_be_is_said_before_anything_is_asked(url: str, folder: str, words: str, tmp_path: Path) -> None:
    called = [
        sys.executable,
        "-P",
        "-m",
        "benchmarks.studies.serving.load",
        url,
        "--output",
        str(tmp_path / folder / "out.json"),
        "--words",
        "2",
        "--requests",
        "1",
    ]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
