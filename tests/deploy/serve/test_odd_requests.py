"""Odd requests by a recorded seed against a real server: answered or refused in the protocol's form, and nothing is left running."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploy.serve.conftest import Served, serving
from tests.deploy.serve.odd_requests import PATIENCE, OddRequest, odd_request
from tests.deploy.serve.test_process import metrics

AT_ONCE = 4
CONTROL: dict[str, Any] = {"model": "tiny-onnx", "prompt": "Hello there", "max_tokens": 8, "temperature": 0}


def test_odd_requests_in_the_suite(served: Served) -> None:
    played(served.url, range(60))


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_a_thousand_odd_requests(tiny_onnx: Path) -> None:
    start = int(os.environ.get("FUZZ_SEED", "1000"))
    with serving(tiny_onnx) as (url, process):
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)  # a full pipe would stop the server
        reader.start()
        played(url, range(start, start + int(os.environ.get("FUZZ_CASES", "1000"))))
        assert process.poll() is None
        process.terminate()
        assert process.wait(2 * PATIENCE) == 0
        reader.join(PATIENCE)
    assert not [line for line in said if "Traceback" in line]


def played(url: str, seeds: range) -> None:
    """All seeds, some at once; then the server must answer as before, and have nothing left to do."""
    before = control(url)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        complaints = [
            f"request {seed}: {complaint}"
            for seed, complaint in zip(seeds, pool.map(lambda seed: play(url, seed), seeds), strict=True)
            if complaint
        ]
    assert not complaints, f"{len(complaints)} of {len(seeds)}:\n" + "\n".join(complaints)
    limit = time.monotonic() + PATIENCE
    while (left := idle(url)) != (0, 0) and time.monotonic() < limit:
        time.sleep(0.1)
    assert left == (0, 0), "sequences that nobody waits for still run or wait"
    assert httpx2.get(f"{url}/health/ready").status_code == 200
    assert control(url) == before


def play(url: str, seed: int) -> str | None:
    return odd_request(seed).play(url)


def control(url: str) -> str:
    return str(httpx2.post(f"{url}/v1/completions", json=CONTROL, timeout=PATIENCE).json()["choices"][0]["text"])


def idle(url: str) -> tuple[float, float]:
    now = metrics(url)
    return now["trimline_queue_length",], now["trimline_running",]


def test_the_same_seed_makes_the_same_request_and_all_kinds_come() -> None:
    made = [odd_request(seed) for seed in range(300)]
    assert made == [odd_request(seed) for seed in range(300)]
    assert {one.leaves for one in made} == {"reads", "closes", "resets", "half", "tastes"}
    assert len({one.sent for one in made}) > 250


@pytest.fixture
def answering() -> Iterator[list[bytes]]:
    """What a server on a socket of its own gives out; the address is put behind it."""
    import socket

    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answers.append(f"http://127.0.0.1:{listening.getsockname()[1]}".encode())

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(answers[-1])

        threading.Thread(target=serve, daemon=True).start()
        yield answers
        listening.shutdown(socket.SHUT_RDWR)


ERROR = b'{"error": {"message": "x", "type": "y", "param": null, "code": "z"}}'


@pytest.mark.parametrize(
    ("status", "kind", "body", "complaint"),
    [
        (500, "application/json", ERROR, "500"),
        (404, "application/json", b'{"detail": "Not Found"}', "not in OpenAI's form"),
        (400, "text/plain", b"fine", "not in OpenAI's form"),
        (200, "text/event-stream", b"data: {}\n\n", "200"),
        (200, "text/event-stream", b"data: {}\n\ndata: [DONE]\n\n", None),
        (503, "application/json", ERROR, None),
        (421, "application/json", ERROR, None),
        (0, "", b"", "no HTTP"),
    ],
)
def test_wrong_answers_are_noticed(answering: list[bytes], status: int, kind: str, body: bytes, complaint: str | None) -> None:
    url = answering[0].decode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n" if status else "nonsense\r\n\r\n"
    answering.append(2 * (head.encode() + body))
    found = OddRequest((b"GET / HTTP/1.1\r\n\r\n",), ("GET", "GET"), "reads").play(url)
    assert (found is None) if complaint is None else (found is not None and complaint in found)
