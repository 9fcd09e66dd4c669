"""What mutants are made of, and the tests that each is tried against."""

from __future__ import annotations

import re
from pathlib import Path

# Folder of modules to the folder of the tests of its room.
ROOMS = {
    "pipeline/prune/methods": "tests/pipeline/prune",
    "pipeline/prune/allocation": "tests/pipeline/prune",
    "pipeline/rebuild": "tests/pipeline/rebuild",
    "exporters/onnx/lowering": "tests/exporters/onnx",
}
QUICK = "not slow and not gpu and not servers and not fuzz"  # what ``make test`` runs

MOST = 4  # test files that a mutant is tried against first


def tests_of(path: str) -> str:
    """The folder of tests that a module is tried against."""
    return next(tests for room, tests in ROOMS.items() if path.rpartition("/")[0] == room)


def naming(path: str, root: Path) -> list[str]:
    """The few test files of its room that have most to do with a module; shorter ones first.

    Called after it; importing it, or a module of ours that imports it; naming it.
    """
    stem, dotted = Path(path).stem, path.removesuffix(".py").replace("/", ".")
    tests = {file: file.read_text(encoding="utf-8") for file in sorted((root / tests_of(path)).rglob("test_*.py"))}
    word = re.compile(rf"\b{re.escape(stem)}\b", re.IGNORECASE)
    users = [dotted, *(user for user in _imported_by(dotted, root) if user.rpartition(".")[2] != "__init__")]

    def distance(file: Path) -> tuple[bool, bool, bool, bool, int]:
        text = tests[file]
        return stem not in file.stem, dotted not in text, not any(user in text for user in users), not word.search(text), len(text)

    return [str(file.relative_to(root)) for file in sorted(tests, key=distance)[:MOST]]


def _imported_by(dotted: str, root: Path) -> list[str]:
    line = re.compile(rf"^ *from {re.escape(dotted)} import ", re.MULTILINE)
    files = (file for package in ("pipeline", "exporters") for file in sorted((root / package).rglob("*.py")))
    return [str(file.relative_to(root))[:-3].replace("/", ".") for file in files if line.search(file.read_text(encoding="utf-8"))]
