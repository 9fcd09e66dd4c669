"""The process: a socket, a model, uvicorn, and a clean end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from deploy.serve.app import ServeOptions, Service, create_app
from deploy.serve.model import ServedModel
from pipeline.common.errors import TrimlineError


def serve(folder: Path, host: str, port: int, threads: int, options: ServeOptions, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; what runs and what waits is finished first.

    Args:
        folder: a package or an ONNX folder.
        host: address to listen on.
        port: 0 takes a free one.
        threads: of the runtime.
        options: names and limits.
        announce: called with the URL as soon as requests are taken.

    Raises:
        TrimlineError: the address is taken or wrong, the folder cannot be served, a second Ctrl-C cut answers off, or the
            process that computes was ended from outside.
    """
    with _bound(host, port) as listening:  # before the model is read, which takes a while
        service = Service(ServedModel(folder), options)
        try:
            config = uvicorn.Config(
                create_app(service, _is_loopback(listening)), log_level="warning", access_log=False, server_header=False
            )
            server = _Server(config, lambda: announce(_url(listening)))
            service.engine.start(service.model.folder, threads, server.lose)
            with _signals_are_handled():
                server.run(sockets=[listening])
            if server.force_exit:
                raise TrimlineError("The server was stopped twice, so answers that ran were cut off.", "Once lets them end.")
            if server.lost:
                raise TrimlineError(
                    "The process that computes was ended, for lack of memory perhaps.", "Start again; a lower --parallel takes less."
                )
        finally:
            service.engine.kill()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self.lost = False

    def lose(self) -> None:
        """Without the process that computes there is nothing to serve: whoever watches this one shall start it again."""
        self.lost = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:  # each answer that breaks off would be logged with its traceback
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise TrimlineError(f"{host!r} is no address of this machine ({error}).", "Use 127.0.0.1, or 0.0.0.0 for every network.") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            raise _cannot_bind(error, host, port) from error
        yield listening


def _cannot_bind(error: OSError, host: str, port: int) -> TrimlineError:
    match error.errno:
        case errno.EADDRINUSE:
            return TrimlineError(f"Port {port} of {host} is taken.", "Name another with --port; 0 takes a free one.")
        case errno.EACCES | errno.EPERM:
            return TrimlineError(f"Port {port} of {host} needs rights that this user does not have.", "Name one above 1023 with --port.")
        case _:
            return TrimlineError(f"{host}:{port} cannot be listened on ({os.strerror(error.errno or 0)}).", "Name another --host.")


@contextmanager
def _signals_are_handled() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more after its shutdown; a clean end is no death by a signal."""

    def nothing(_: int, __: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback
