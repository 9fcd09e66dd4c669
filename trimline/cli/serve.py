"""``trimline serve``: reads the command line; ``deploy.serve`` does the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.errors import TrimlineError
from pipeline.common.memory import usable_cores
from trimline.cli.session import session

KEY = "TRIMLINE_API_KEY"
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    folder: Annotated[Path, typer.Argument(help="A package with an ONNX export, or a folder that `trimline export` wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: the folder's name.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="Of the runtime; default: every core this process may use.")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Requests that take turns, each with its own cache.")] = 4,
    max_queue: Annotated[int, typer.Option(min=1, max=100_000, help="Requests that may wait; more are refused with 429.")] = 128,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY, help="Clients must send it. Others see a command line: better set the variable."),
    ] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Most tokens of prompt and answer together; default: the model's.")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for what runs and waits, once the server is told to end.")] = 30.0,
    read_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to be read.")] = 30.0,
    write_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in which a client may read nothing of its answer.")] = 30.0,
    step_timeout: Annotated[float, typer.Option(min=1, help="Seconds for one step; then the process that computes is lost.")] = 120.0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Answer OpenAI's completions and chat over HTTP."""
    with session(debug=debug) as here:
        from deploy.serve.model import needs_extra, onnx_folder

        needs_extra()
        onnx_folder(folder)
        key = _key(os.environ.get(KEY) if api_key is None else api_key)  # an empty variable is none to click
        from deploy.serve.app import ServeOptions
        from deploy.serve.bounds.connections import Patience
        from deploy.serve.server import serve as run

        options = ServeOptions(
            name or folder.resolve().name,
            parallel,
            max_queue,
            key,
            grace,
            Patience(read_timeout, write_timeout),
            step_timeout,
            context,
        )
        if host not in LOCAL and key is None:
            here.events.note(f"anybody who reaches {host} may use this model; --api-key demands a key")
        run(folder, host, port, threads or usable_cores(), options, lambda url: _announce(url, options.name), here.events.note)


def _announce(url: str, name: str) -> None:
    typer.echo(f"Serving {name} at {url}/v1; Ctrl-C ends it.")


def _key(given: str | None) -> str | None:
    """The key as clients send it: one that was read from a file often ends with the line.

    Raises:
        TrimlineError: it is empty, or no header can carry it.
    """
    if given is None:
        return None
    key = given.removeprefix("\ufeff").strip()
    if not key:
        raise TrimlineError("The API key is empty.", f"Set one by --api-key or {KEY}, or neither of them.")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
        raise TrimlineError("The API key holds a line's end or another control character.", "Give a key of one line.")
    return key
