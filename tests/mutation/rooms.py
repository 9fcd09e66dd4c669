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
    """The few test files of its room that have most to do with a module: called after it, importing it, naming it; shorter ones first."""
    stem, dotted = Path(path).stem, path.removesuffix(".py").replace("/", ".")
    texts = {file: file.read_text(encoding="utf-8") for file in sorted((root / tests_of(path)).rglob("test_*.py"))}
    word = re.compile(rf"\b{re.escape(stem)}\b", re.IGNORECASE)

    def distance(file: Path) -> tuple[bool, bool, bool, int]:
        return stem not in file.stem, dotted not in texts[file], not word.search(texts[file]), len(texts[file])

    return [str(file.relative_to(root)) for file in sorted(texts, key=distance)[:MOST]]
