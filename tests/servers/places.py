"""Where the servers' environments are, and processes that end with the test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READY_SECONDS = 600  # a server that ends before is noticed at once


def environment(name: str, program: str) -> Path:
    """The folder of a server's environment; the test is skipped where it was not made."""
    folder = Path(os.environ.get("TRIMLINE_SERVERS") or ROOT / ".servers") / name
    if not (folder / program).exists():
        pytest.skip(f"{folder} has no {program}: `make test-servers` makes it (tests/servers/make_{name}.sh)")
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [entry.getsockname()[1] for entry in sockets]


@contextlib.contextmanager
def started(
    command: Sequence[str], folder: Path, log: Path, ready: str, known: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process in ``folder``, from the moment that the address ``ready`` answers; ``known`` are its environment variables."""
    with log.open("wb") as out, subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=known) as process:
        try:
            _wait(process, log, ready)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], log: Path, ready: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(ready, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server is not ready at {ready}: {log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
