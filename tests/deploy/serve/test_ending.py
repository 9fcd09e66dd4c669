"""The server ends, and goes on, whatever clients and the process that computes do; real processes and raw sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import psutil

from tests.deploy.serve.conftest import CONTEXT, serving

PATIENCE = 60
SHORT = ("--grace", "1", "--read-timeout", "1", "--write-timeout", "1", "--step-timeout", "4", "--parallel", "2")
STREAM = {"model": "tiny-onnx", "prompt": "x", "max_tokens": CONTEXT - 1, "ignore_eos": True, "stream": True}


def request(body: dict[str, object], stated: int = 0) -> bytes:
    """As it goes over the wire; ``stated``: the length that its head states, where it is not the body's own."""
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {stated or len(raw)}\r\n\r\n"
    return head.encode() + raw


HALVES = {"half a body": request(STREAM, 5000), "half a head": b"POST /v1/completions HTTP/1.1\r\nHost: 127."}


def sending(url: str, raw: bytes) -> socket.socket:
    """A connection whose client has sent this and reads nothing; little of an answer fits into what lies between."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    client.sendall(raw)
    client.settimeout(PATIENCE)
    return client


@contextmanager
def bad_clients(url: str) -> Iterator[None]:
    with ExitStack() as stack:
        for raw in (*HALVES.values(), *4 * [request(STREAM)]):
            stack.enter_context(sending(url, raw))
        time.sleep(0.5)
        yield


def computing(process: subprocess.Popen[str]) -> psutil.Process:
    return next(child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline()))


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.1)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read().strip()


def figure(url: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx2.get(f"{url}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_clients_that_keep_it_waiting_are_cut_and_do_not_hold_its_end(tiny_onnx: Path) -> None:
    with serving(tiny_onnx, *SHORT) as (url, process):
        with sending(url, HALVES["half a body"]) as client:
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"The body did not come within 1 s."' in answer
        with sending(url, HALVES["half a head"]) as client, suppress(ConnectionResetError):
            assert client.recv(1) == b""
        with bad_clients(url):  # all four streams: two that run, and those that get their place
            until(lambda: figure(url, "trimline_cancelled_total") == 4)
            usual = {"model": "tiny-onnx", "prompt": "x", "max_tokens": 3}
            assert httpx2.post(f"{url}/v1/completions", json=usual, timeout=PATIENCE).status_code == 200
        with bad_clients(url):
            process.send_signal(signal.SIGTERM)
            assert seconds(lambda: process.wait(PATIENCE)) < 10
        assert (process.returncode, said(process)) == (0, "")


def test_a_lost_process_ends_the_server_whatever_clients_do(tiny_onnx: Path) -> None:
    with serving(tiny_onnx) as (url, process), bad_clients(url):
        computing(process).kill()
        assert seconds(lambda: process.wait(PATIENCE)) < 5
        assert process.returncode == 2
        assert said(process).startswith("error: The process that computes was ended")


def test_a_process_that_hangs_is_not_ready_and_is_lost_after_a_while(tiny_onnx: Path) -> None:
    with serving(tiny_onnx, *SHORT) as (url, process), bad_clients(url):
        computing(process).suspend()
        until(lambda: httpx2.get(f"{url}/health/ready").status_code == 503)
        assert httpx2.get(f"{url}/health/live").status_code == 200
        assert process.wait(PATIENCE) == 2
        assert said(process).startswith("error: The process that computes has not answered for 4 s.")
        assert not psutil.pid_exists(process.pid) or psutil.Process(process.pid).children() == []
