"""What every verb of the command line shares: events on the terminal, the JSON answer, and errors as sentences."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from pipeline.errors import TrimlineError
from pipeline.events import Events

# Libraries draw bars of their own with tqdm, which reads this when it is imported; the events here say the same.
os.environ.setdefault("TQDM_DISABLE", "1")

INTERRUPTED, INTERNAL = 130, 70
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Session:
    """One call of the command line.

    Attributes:
        out: where results go: stdout, or stderr with ``--json``, so that stdout ends with one JSON document.
        events: shown on stderr.
    """

    def __init__(self, as_json: bool, events: Events) -> None:
        self.out = Console(stderr=as_json)
        self.events = events
        self._as_json = as_json

    def answer(self, document: dict[str, Any]) -> None:
        """Prints the JSON document as the last line of stdout, where it was asked for."""
        if self._as_json:
            typer.echo(json.dumps(document, default=str, allow_nan=False))


@contextmanager
def session(as_json: bool = False, debug: bool = False) -> Iterator[Session]:
    """Runs a verb; turns what goes wrong into one sentence on stderr and an exit code."""
    from trimline.console import TerminalEvents

    console = Console(stderr=True)
    try:
        with TerminalEvents(console) as shown:
            yield Session(as_json, Events(shown))
    except (typer.Exit, SystemExit):  # the second is what rich makes of a reader that went away, such as `| head`
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        sentence, code = explain(error)
        console.print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)
        raise typer.Exit(code) from None


def ended_by_itself(command: Callable[[], object]) -> None:
    """Runs the command line; an interrupted one ends here and now.

    An interrupt may come while a library holds a lock that its threads wait for, and Python waits for those threads before
    it ends. By now every stage has cleaned up behind itself.
    """
    try:
        command()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a reader that went away
                stream.flush()
        os._exit(INTERRUPTED)


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for anything that can go wrong."""
    if full := _full_disk(error):
        return _explain_system(full), 2
    match error:
        case TrimlineError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "Interrupted. Finished stages are kept; the same command goes on from there.", INTERRUPTED
        case MemoryError():
            return "There is not enough memory. Use fewer or shorter windows, or a machine with more.", 2
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_system(error), 2
    what = " ".join(str(error).split())[:300]
    return f"Something went wrong inside ({type(error).__name__}: {what}). Run again with --debug and report what it shows.", INTERNAL


def _full_disk(error: BaseException | None) -> OSError | None:
    """The lack of space behind an error; what the safetensors and ONNX writers raise is no OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        for number in FULL:
            if os.strerror(number) in str(error):
                return OSError(number, "")
        error = error.__cause__
    return None


def _explain_system(error: OSError) -> str:
    place = f" at {error.filename}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{place}. Nothing half-written was left; free some space and run the same command again."
        case errno.EFBIG:
            return (
                f"A file grew beyond what a limit or the file system allows{place}. Nothing half-written was left; raise it and run again."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"There is no permission to write or read{place}. Name another output folder or change its permissions."
        case _:
            return f"{os.strerror(error.errno or 0)}{place}. Check that place and run the same command again."
