"""What every verb of the command line shares: events on the terminal, the JSON answer, and errors as sentences."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from pipeline.common.errors import Terminated, explain
from pipeline.common.events import Events
from trimline.cli.ending import what_ended
from trimline.cli.pages import nearest_page

# Libraries draw bars of their own with tqdm, which reads this when it is imported; the events here say the same.
os.environ.setdefault("TQDM_DISABLE", "1")


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
    from trimline.cli.console import TerminalEvents

    console = Console(stderr=True)
    try:
        with TerminalEvents(console) as shown:
            yield Session(as_json, Events(shown))
    except BaseException as error:
        # A SystemExit is what rich makes of a reader that went away, such as `| head`.
        if isinstance(error, typer.Exit | SystemExit) and not isinstance(error, Terminated):
            raise
        if debug:
            traceback.print_exc()
        ended = what_ended(error)
        sentence, code = explain(ended)
        console.print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)
        if page := nearest_page(ended):
            console.print(Text(f"See {page}.", "dim"), soft_wrap=True)
        raise typer.Exit(code) from None
