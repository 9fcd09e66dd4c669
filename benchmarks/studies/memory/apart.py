"""A measurement in a process of its own, which never held anything else: the study's module, started once more as a child."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer

from pipeline.common.answering import answer_parent, answered
from pipeline.common.children import Child, Died, Words, ask_once, module_command

APART = "--apart"
Record = dict[str, Any]


def apart(module: str, do: str, **what: Any) -> Record:
    """What a study's process answers.

    Raises:
        SystemExit: it failed; with what it said.
    """
    try:
        found = ask_once(Child(module_command(module, APART), Words(f"measures {do}")), do, **what)
    except Died as died:
        raise SystemExit("\n".join(died.said) or str(died)) from None
    if "problem" in found:
        raise SystemExit(f"{found['problem']} {found['remedy']}".strip())
    return found


def start(main: Callable[..., None], work: Mapping[str, Callable[..., Record]]) -> None:
    """Main of a study's module: the command, or what ``apart`` asks for."""
    if sys.argv[1:] == [APART]:
        answer_parent(lambda request: answered(work[request["do"]], **{name: value for name, value in request.items() if name != "do"}))
    else:
        typer.run(main)
