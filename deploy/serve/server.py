"""The process: a socket, a model, uvicorn, and a clean end."""

from __future__ import annotations

import asyncio
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
from deploy.serve.bounds.connections import SOCKET_BUFFER, Connections, Patience, cut
from deploy.serve.bounds.ending import FLUSH, TICK, Ending
from deploy.serve.model import ServedModel
from pipeline.common.errors import TrimlineError


def serve(
    folder: Path, host: str, port: int, threads: int, options: ServeOptions, announce: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or Ctrl-C; what runs and what waits is finished first, within ``options.grace``. Then the process ends.

    Its exit code is 2, after one sentence, where a second Ctrl-C cut answers off, or where the process that computes was ended
    from outside or hangs.

    Args:
        folder: a package or an ONNX folder.
        host: address to listen on.
        port: 0 takes a free one.
        threads: of the runtime.
        options: names and limits.
        announce: called with the URL as soon as requests are taken.
        note: called with what is worth knowing before that.

    Raises:
        TrimlineError: the address is taken or wrong, or the folder cannot be served.
    """
    with _bound(host, port) as listening:  # before the model is read, which takes a while
        model = ServedModel(folder, options.context)
        service = Service(model, options)
        ending = Ending(options.grace, service.kill)
        try:
            server = _Server(service, _is_loopback(listening), ending, lambda: announce(_url(listening)))
            if model.tokenizer.chat_template:
                model.templates.start()  # while the graph is opened
            service.engine.start(model.folder, threads, server.lose)
            for words in _notes(service):
                note(words)
            ending.start()
            with _signals_are_handled():
                server.run(sockets=[listening])
            if server.force_exit:
                ending.fail(TrimlineError("The server was stopped twice, so answers that ran were cut off.", "Once lets them end."))
            ending.end()
        finally:
            service.kill()


def _notes(service: Service) -> Iterator[str]:
    """What a request may cost, and whether conversations can be answered."""
    context, parallel = service.model.context, service.options.parallel
    size = service.engine.cache_bytes * context / 2**20
    yield (
        f"a request may have {context:,} tokens, whose cache takes {size:,.0f} MiB, {parallel} of them {parallel * size:,.0f} MiB; "
        "it grows with the text, and --context lowers it"
    )
    if wrong := service.model.check_template():
        yield f"{wrong} That was a plain conversation: /v1/chat/completions may answer none."


HURRY = 2.0  # seconds for requests that are not read yet when the server is told to end


class _Server(uvicorn.Server):
    """uvicorn, which by itself waits for clients without a limit.

    Its ``timeout_graceful_shutdown`` is not used: it ends tasks, and waits for nothing else, but leaves connections open and
    their clients without a word.
    """

    def __init__(self, service: Service, local: bool, ending: Ending, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(create_app(service, local), http="h11", ws="none", log_level="warning", access_log=False, server_header=False)
        )
        self._engine, self._ending, self._ready = service.engine, ending, ready
        self._patience = service.options.patience
        self._connections = Connections(self._patience)

    def lose(self) -> None:
        """Without the process that computes there is nothing to serve: whoever watches this one shall start it again."""
        self._ending.fail(self._engine.loss)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._looking = asyncio.create_task(self._look_after())
            self._ready()

    async def _look_after(self) -> None:
        """Ends what takes too long, and on the way out everything."""
        hurry = Patience(min(HURRY, self._patience.read), self._patience.write)
        while True:
            await asyncio.sleep(TICK)
            late = self._ending.late
            if late >= 0:
                self._engine.abandon("the server has ended before this answer was finished")
            if late >= FLUSH or self.force_exit:
                cut(self.server_state.connections)
            self._connections.look(self.server_state.connections, hurry if self.should_exit else None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._ending.ask()
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
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)  # of every connection
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
