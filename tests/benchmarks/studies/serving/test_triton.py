"""Triton's stream, and the bars of a service, on made-up answers; a real Triton is another environment's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks.studies.serving.load import LoadRun, page
from benchmarks.studies.serving.request import RequestFailed, RequestSample
from benchmarks.studies.serving.service_levels import BARS, level, levels, table
from benchmarks.studies.serving.triton import TritonEndpoint, TritonReading
from tests.benchmarks.studies.serving.local_server import answering

ROOT = Path(__file__).parents[4]


def event(text: str, token: object, finish: str = "") -> dict[str, object]:
    return {"model_name": "m-stream", "model_version": "1", "text_output": text, "token_ids": token, "finish_reason": finish}


def test_a_stream_is_counted_by_its_token_ids():
    reading = TritonReading()
    assert [reading.take(event("a", 5)), reading.take(event("", [6, -1])), reading.take(event("b", [7, 8], "length"))] == [
        True,
        False,
        True,
    ]
    assert reading.counts() == (None, 4)


@pytest.mark.parametrize(
    ("events", "words"), [([event("a", 5)], "before its finish_reason"), ([{"text_output": "a", "finish_reason": "stop"}], "no token_ids")]
)
def test_a_stream_that_breaks_off_or_cannot_be_counted_is_a_failure(events, words):
    reading = TritonReading()
    for one in events:
        reading.take(one)
    with pytest.raises(RequestFailed, match=words):
        reading.counts()


class _Triton(BaseHTTPRequestHandler):
    """Three tokens for every prompt, in Triton's form."""

    asked: list[dict[str, object]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/json" if self.path.endswith("index") else "text/event-stream")
        self.end_headers()
        if self.path.endswith("/v2/repository/index"):
            self.wfile.write(json.dumps([{"name": "m"}, {"name": "m-stream"}]).encode())
            return
        type(self).asked.append({"path": self.path} | body)
        for number, finish in enumerate(("", "", "length")):
            self.wfile.write(f"data: {json.dumps(event('x', number, finish))}\n\n".encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def triton() -> Iterator[str]:
    with answering(_Triton) as address:
        yield address


def test_the_command_measures_what_speaks_tritons_protocol(triton, tmp_path):
    out = tmp_path / "served.json"
    options = ["--protocol", "triton", "--requests", "3", "--concurrency", "2", "--words", "2", "--tokens", "3"]
    command = [sys.executable, "-m", "benchmarks.studies.serving.load", triton, *options, "--output", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {entry["path"] for entry in _Triton.asked} == {"/v2/models/m-stream/generate_stream"}
    assert {entry["max_tokens"] for entry in _Triton.asked} == {3}
    assert len({entry["text_input"] for entry in _Triton.asked}) == 5  # two to warm up, and no prompt twice
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["workload"]["protocol"], record["workload"]["model"]) == ("triton", "m-stream")
    assert record["first_request"]["output_tokens"] == 3
    (run,) = record["runs"]
    assert [sample["output_tokens"] for sample in run["samples"]] == [3, 3, 3]
    assert run["samples"][0]["prompt_tokens"] is None
    assert "output tokens 3 to 3" in done.stdout
    assert "prompt tokens" not in done.stdout
    refused = subprocess.run([*command, "--chat"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 2
    assert "takes neither --chat" in refused.stderr


def test_the_request_is_greedy_and_of_limited_length():
    assert TritonEndpoint("m", 9).body("p") == {"text_input": "p", "max_tokens": 9}


def sample(ttft: float, tpot: float) -> RequestSample:
    return RequestSample(0.0, (ttft, ttft + 2 * tpot), 7, 3)


def test_a_service_is_judged_by_p99_and_says_so_where_there_is_none():
    few = levels([sample(0.4, 0.02)] * 99, 0)
    assert [one.met for one in few] == [None] * 4
    assert "n/a (n=99)" in table(few)
    assert [one.met for one in levels([sample(0.4, 0.02)] * 100, 0)] == [True] * 4
    slow = [sample(0.4, 0.02)] * 90 + [sample(0.4, 0.05)] * 10
    assert [one.met for one in levels(slow, 0)] == [True, False, True, False]
    assert [one.within for one in levels(slow, 0)] == [1.0, 0.9, 1.0, 0.9]


def test_what_failed_meets_no_bar():
    found = level([sample(0.1, 0.01)] * 150, 50, BARS[0])
    assert (found.met, found.within) == (False, 0.75)
    assert levels([], 3) == []


def test_a_run_shows_bars_and_tokens_per_user():
    said = page(LoadRun(1, 10.0, [sample(0.4, 0.02)] * 100, []))
    assert "50.0 output tokens/s/user (1 / median TPOT)" in said
    assert "| llama2-70b interactive | 450 | 400.00 | 40 | 20.00 | 100.0% | yes |" in said
    assert "no MLPerf result" in said
