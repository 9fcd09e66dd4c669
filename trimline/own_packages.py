"""Whether Python finds Trimline's other packages: their names are common, and a file of a user's may have the same one.

Standard library only, and nothing of ours: this runs before anything else does.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

NAMES = ("pipeline", "exporters", "deploy", "benchmarks")
HOME = Path(__file__).parents[1]  # what lies beside this package is ours
COMMAND = "trimline"
IN_MEMORY = "a module in memory"
EXIT_CODE = 2  # as of every error that the user can mend


def demand_ours() -> None:
    """Demands that each of ``NAMES`` is ours; in the command, what merely lies where the user stands is no longer looked at.

    Raises:
        ImportError: Python would import something else; the message names it and says what to do.
        SystemExit: likewise, where this process is the command, which says so without a traceback.
    """
    command = is_the_command()
    if command:
        _leave_own_folder_out()
    for name in NAMES:
        place = in_the_way(name)
        if place is None:
            continue
        sentence = f"Python takes {place} for Trimline's package {name!r}: {_remedy(place, command)}."
        if command:
            print(f"error: {sentence}", file=sys.stderr)
            raise SystemExit(EXIT_CODE)
        raise ImportError(sentence, name=name, path=place)


def in_the_way(name: str) -> str | None:
    """The file or folder that Python would import by this name, or has imported; None where it is ours, or where there is nothing."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module in memory that no import made
        return str(getattr(sys.modules[name], "__file__", None) or IN_MEMORY)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    if folders and same(folders[0], HOME / name):
        return None
    return folders[0] if folders else str(spec.origin)


def is_the_command() -> bool:
    """Whether this process is the console script or ``python -m trimline.cli``."""
    arguments = getattr(sys, "argv", None) or [""]
    if arguments[0] != "-m":
        return Path(arguments[0]).stem == COMMAND
    # So it stands there only while Python looks for the module that it is to run.
    module = "".join(sys.orig_argv[-len(arguments) :][:1]).removeprefix("-m")
    return module.partition(".")[0] == COMMAND


def _leave_own_folder_out() -> None:
    """Takes off Python's path what it put there for the command's sake: its script's folder, or the one that the user stands in."""
    if not sys.flags.safe_path and same(sys.path[0], _own_folder()) and not same(sys.path[0], HOME):
        del sys.path[0]


def _own_folder() -> str:
    """What Python puts first on its path: the folder of the program that it runs, or for a module the one that the user stands in."""
    program = (getattr(sys, "argv", None) or [""])[0]
    return "" if program in ("", "-c", "-m") else os.path.dirname(os.path.realpath(program))


def _remedy(place: str, command: bool) -> str:
    if place == IN_MEMORY:
        return "import trimline before what makes it"
    if not (command or sys.flags.safe_path) and same(os.path.dirname(place), _own_folder()):
        return f"rename it, run python -P, or use the command {COMMAND}"
    return "rename or uninstall it, or take its folder off PYTHONPATH"


def same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one place."""
    one, other = os.path.abspath(one), os.path.abspath(other)
    try:
        return os.path.samefile(one, other)
    except OSError:  # a place within an archive
        return one == other
