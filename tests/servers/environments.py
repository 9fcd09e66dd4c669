"""Where the environments of the servers are, and how a test skips without one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

VARIABLE = "TRIMLINE_SERVERS"
ROOT = Path(__file__).parents[2]


def python_of(name: str) -> Path:
    """The Python of a server's environment; skips the test where there is none."""
    folder = Path(os.environ.get(VARIABLE) or ROOT / ".servers") / name
    python = folder / "bin" / "python"
    if not (list(folder.glob(".made-*")) and python.exists()):
        pytest.skip(f"the environment {name} is not there: `make test-servers` builds it (or {VARIABLE} names the folder that holds it)")
    return python


@contextmanager
def served(command: list[str], port: int, ready: str, log: Path, seconds: float = 300) -> Iterator[str]:
    """A server on the loopback interface while the block runs; yields its address."""
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            _wait(server, address + ready, log, seconds)
            yield address
            assert server.poll() is None, f"the server died: {log.read_text()[-2000:]}"
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(server: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"the server did not start: {log.read_text()[-2000:]}"
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server was not ready after {seconds} s: {log.read_text()[-2000:]}")
