"""The process: many clients at once, a full queue, clients that leave, a key, signals, and what keeps it from starting."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import deploy.serve.server
from deploy.serve.answering import Done, Event, Failed, Job, Piece
from deploy.serve.engine import Engine, QueueFull, Stopping
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from pipeline.common.memory import usable_cores
from tests.deploy.serve.conftest import CONTEXT, ROOT, Served, serving
from trimline.cli.app import app

PATH = "/v1/completions"
PATIENCE = 60


def body(tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny-onnx", "prompt": "x", "max_tokens": tokens, "ignore_eos": True} | more


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """Name and labels to value."""
    text = httpx2.get(f"{url}/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }


async def at_once(url: str, requests: list[dict[str, Any]]) -> list[httpx2.Response]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        return await asyncio.gather(*(client.post(PATH, json=request) for request in requests))


def test_none_of_64_requests_at_once_is_lost(served: Served) -> None:
    prompts = [f"Prompt {number}" for number in range(64)]
    requests = [body(20, prompt=prompt, temperature=0, stream=number % 2 == 1) for number, prompt in enumerate(prompts)]
    before = metrics(served.url)
    answers = asyncio.run(at_once(served.url, requests))
    assert {answer.status_code for answer in answers} == {200}
    alone = [httpx2.post(served.url + PATH, json=request | {"stream": False}).json()["choices"][0]["text"] for request in requests]
    assert [_text(answer) for answer in answers] == alone
    assert len(set(alone)) > 20, "answers that are all alike would hide a mix-up"
    after = metrics(served.url)
    assert after["trimline_completion_tokens_total",] - before["trimline_completion_tokens_total",] == 2 * 64 * 20
    assert after["trimline_time_to_first_token_seconds_count",] >= before["trimline_time_to_first_token_seconds_count",] + 64
    assert (after["trimline_queue_length",], after["trimline_running",]) == (0, 0)


def _text(answer: httpx2.Response) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["text"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(served: Served, stream: bool) -> None:
    before = metrics(served.url)["trimline_cancelled_total",]
    with httpx2.Client(base_url=served.url, timeout=httpx2.Timeout(PATIENCE, read=PATIENCE if stream else 0.2)) as client:
        if stream:
            with client.stream("POST", PATH, json=body(CONTEXT - 1, stream=True)) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post(PATH, json=body(CONTEXT - 1))
    limit = time.monotonic() + PATIENCE
    while (now := metrics(served.url))["trimline_cancelled_total",] == before and time.monotonic() < limit:
        time.sleep(0.05)
    assert now["trimline_cancelled_total",] == before + 1


def test_health(served: Served) -> None:
    for path in ("/health/live", "/health/ready"):
        assert httpx2.get(served.url + path).json() == {"status": "ok"}


def test_a_full_queue_asks_to_come_back_and_a_key_is_demanded(tiny_onnx: Path) -> None:
    with serving(tiny_onnx, "--parallel", "1", "--max-queue", "1", TRIMLINE_API_KEY="secret") as (url, _):
        wrong = [{}, {"Authorization": "secret"}, {"Authorization": "Bearer secre"}, {"Authorization": "Bearer sécret".encode("latin-1")}]
        for headers in wrong:
            answer = httpx2.post(url + PATH, json=body(1), headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx2.get(f"{url}/health/live").status_code == 200
        answers = asyncio.run(_with_key(url, 12))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["code"] == "queue_full" for answer in refused)
        assert metrics(url)["trimline_errors_total", "queue_full"] == len(refused)


async def _with_key(url: str, number: int) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE, headers={"Authorization": "Bearer secret"}) as client:
        return await asyncio.gather(*(client.post(PATH, json=body(2000)) for _ in range(number)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_runs(tiny_onnx: Path, number: signal.Signals) -> None:
    with serving(tiny_onnx) as (url, process):
        with httpx2.stream(
            "POST", url + PATH, json=body(3000, stream=True, stream_options={"include_usage": True}), timeout=PATIENCE
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 3000
        assert process.wait(PATIENCE) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health/live")


def test_a_second_interrupt_does_not_wait(tiny_onnx: Path) -> None:
    with serving(tiny_onnx, "--parallel", "1") as (url, process), ExitStack() as open_streams:
        for _ in range(6):
            asked = httpx2.stream("POST", url + PATH, json=body(CONTEXT - 1, stream=True), timeout=PATIENCE)
            open_streams.enter_context(asked)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)  # two signals of one kind at once may count as one
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 2
        assert process.stdout is not None
        assert process.stdout.read().strip().splitlines()[-1].startswith("error: The server was stopped twice")


def called(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *arguments])
    return result.exit_code, result.stderr


def test_a_port_that_is_taken_is_one_sentence(tiny_onnx: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = called(str(tiny_onnx), "--port", port)
    assert code == 2
    assert said == f"error: Port {port} of 127.0.0.1 is taken. Name another with --port; 0 takes a free one.\n"


def test_an_address_of_another_machine_is_one_sentence(tiny_onnx: Path) -> None:
    code, said = called(str(tiny_onnx), "--host", "192.0.2.1", "--port", "0", "--api-key", "x")
    assert code == 2
    assert said.count("\n") == 1
    assert "cannot be listened on" in said


def test_a_folder_that_is_no_model_is_one_sentence(tiny_checkpoint: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    for folder, what in (
        (tiny_checkpoint, "no genai_config.json"),
        (tmp_path / "none", f"There is no folder {tmp_path / 'none'}. Give a package"),
    ):
        code, said = called(str(folder))
        assert (code, said.count("\n")) == (2, 1)
        assert what in said
    inside = tmp_path / "run" / "package" / "onnx"
    inside.mkdir(parents=True)
    (inside / "genai_config.json").write_bytes((tiny_onnx / "genai_config.json").read_bytes())
    code, said = called(str(tmp_path / "run"))
    assert (code, said.count("\n")) == (2, 1)
    assert f"It holds a run's package: give {inside.parent}." in said
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "genai_config.json").write_bytes((tiny_onnx / "genai_config.json").read_bytes())
    code, said = called(str(tmp_path), "--port", "0")
    assert code == 2
    assert "has no tokenizer" in said


def test_a_missing_extra_is_one_sentence(tiny_onnx: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from trimline.cli.app import app; app(['serve', sys.argv[1]])"
    result = subprocess.run([sys.executable, "-c", code, str(tiny_onnx)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: Serving needs uvicorn, which is not installed. pip install 'trimline[cpu,serve]'.\n"


class Heard:
    """Events of a job, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def job(self, **options: Any) -> Job:
        return Job([5, 6], {"max_length": 12, "do_sample": False, "min_length": 12} | options, (), self.events.append)


def test_the_engine_takes_as_many_as_it_says_and_finishes_them(tiny_onnx: Path) -> None:
    told = Metrics()
    engine = Engine(ServedModel(tiny_onnx), 2, 3, told)
    heard = [Heard() for _ in range(5)]
    jobs = [one.job() for one in heard]
    for job in jobs[:3]:  # before it starts: nothing leaves the queue
        engine.submit(job)
    with pytest.raises(QueueFull):
        engine.submit(jobs[3])
    engine.cancel(jobs[1])
    engine.submit(jobs[4])
    engine.start(tiny_onnx, 1)
    engine.stop()
    ends = [one.events[-1] if one.events else None for one in heard]
    assert ends == [Done("length", 2, 10), None, Done("length", 2, 10), None, Done("length", 2, 10)]
    with pytest.raises(Stopping):
        engine.submit(Heard().job())


def test_a_request_that_the_runtime_refuses_fails_alone(tiny_onnx: Path) -> None:
    engine = Engine(ServedModel(tiny_onnx), 2, 3, Metrics())
    good, bad = Heard(), Heard()
    engine.submit(bad.job(max_length=CONTEXT + 1))
    engine.submit(good.job())
    engine.start(tiny_onnx, 1)
    engine.stop()
    assert isinstance(bad.events[-1], Failed)
    assert "Lower max_tokens." in bad.events[-1].message
    assert isinstance(good.events[0], Piece)
    assert good.events[-1] == Done("length", 2, 10)


def test_a_request_whose_text_raises_fails_alone(tiny_onnx: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(ServedModel(tiny_onnx), 1, 5, Metrics())
    good, bad, worse = Heard(), Heard(), Heard()
    engine.submit(dataclasses.replace(bad.job(), stops=(7,)))  # type: ignore[arg-type]
    engine.submit(dataclasses.replace(worse.job(), prompt=[-1]))
    engine.submit(dataclasses.replace(good.job(), emit=_raise))
    engine.submit(good.job())
    engine.start(tiny_onnx, 1)
    engine.stop()
    assert [type(event) for event in (*bad.events, *worse.events)] == [Failed, Failed]
    assert "TypeError" in bad.events[0].message  # type: ignore[union-attr]
    assert good.events[-1] == Done("length", 2, 10)
    assert [record.message for record in caplog.records] == 3 * ["A request ended in an error."]


def _raise(event: Event) -> None:
    raise LookupError(event)


def test_requests_of_a_process_that_is_killed_fail_and_the_server_ends(tiny_onnx: Path) -> None:
    with serving(tiny_onnx) as (url, process):
        with httpx2.stream("POST", url + PATH, json=body(CONTEXT - 1, stream=True), timeout=PATIENCE) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine = next(child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline()))
            engine.kill()
            rest = [line for line in lines if line]
        assert "the process that computes has ended" in rest[-2]
        assert process.wait(PATIENCE) == 2
        assert process.stdout is not None
        assert process.stdout.read().startswith("error: The process that computes was ended")


def test_an_engine_says_that_its_process_was_lost_and_not_that_it_was_stopped(tiny_onnx: Path) -> None:
    lost = threading.Event()
    stopped = Engine(ServedModel(tiny_onnx), 1, 1, Metrics())
    stopped.start(tiny_onnx, 1, lost.set)
    stopped.stop()
    assert not lost.wait(0.5)
    killed = Engine(ServedModel(tiny_onnx), 1, 1, Metrics())
    killed.start(tiny_onnx, 1, lost.set)
    killed.kill()
    assert lost.wait(PATIENCE)
    assert not killed.alive
    with pytest.raises(Stopping):
        killed.submit(Heard().job())
    killed.stop()


def test_a_server_that_is_killed_leaves_no_process(tiny_onnx: Path) -> None:
    with serving(tiny_onnx) as (_, process):
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert alive == []


def test_a_graph_that_the_runtime_cannot_open_is_one_sentence(tiny_onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_onnx, folder)
    (folder / "model.onnx").write_bytes(b"nonsense")
    code, said = called(str(folder), "--port", "0")
    assert code == 2
    assert "ONNX Runtime cannot open" in said


def test_without_a_number_of_threads_every_core_computes(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(deploy.serve.server, "serve", lambda folder, host, port, threads, *_: given.append(threads))
    assert called(str(tiny_onnx)) == (0, "")
    called(str(tiny_onnx), "--threads", "3")
    assert given == [usable_cores(), 3]


def test_a_key_comes_from_a_file_and_an_empty_one_is_refused(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str | None] = []
    monkeypatch.setattr(deploy.serve.server, "serve", lambda folder, host, port, threads, options, *_: given.append(options.api_key))
    for variable in ("secret\n", "\ufeffcl\u00e9\r\n", " a b "):
        monkeypatch.setenv("TRIMLINE_API_KEY", variable)
        assert called(str(tiny_onnx)) == (0, "")
    assert called(str(tiny_onnx), "--api-key", "of the option") == (0, "")
    assert given == ["secret", "cl\u00e9", "a b", "of the option"]
    for variable, what in (("", "is empty"), ("\n", "is empty"), ("a\nb", "a line's end")):
        monkeypatch.setenv("TRIMLINE_API_KEY", variable)
        code, said = called(str(tiny_onnx))
        assert (code, said.count("\n")) == (2, 1)
        assert what in said
    monkeypatch.delenv("TRIMLINE_API_KEY")
    assert called(str(tiny_onnx), "--api-key", "")[0] == 2
    assert called(str(tiny_onnx)) == (0, "")
    assert given[-1] is None
