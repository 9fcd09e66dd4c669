"""``python -m tests.mutation``: draws mutants, tries each against the tests of its room, and keeps every outcome as it comes.

A run that was stopped goes on where it stopped. Needs cosmic-ray and coverage: ``make mutants`` has an environment with them.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutation.drawing import Mutant, draw
from tests.mutation.rooms import ROOMS, tests_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "mutation" / "results.jsonl"
ALIVE = {"lived", "unreached"}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--again", action="store_true", help="try those that lived once more, against all tests of their room that run the line"
    )
    parser.add_argument("--covered", type=Path, help="of --again: a folder where the tests by line are kept, or are already")
    given = parser.parse_args()
    drawn, places = draw(ROOT, given.count, given.seed)
    known = kept(given.results)
    wanted = [m for m in drawn if (known.get(m.key, {}).get("outcome") in ALIVE if given.again else m.key not in known)]
    print(f"{len(drawn)} mutants of {places} places by seed {given.seed}; {len(wanted)} to be tried", flush=True)
    with copied() as tree:
        if not given.again:
            _try(tree, None, wanted, given.results)
        for tests in dict.fromkeys(ROOMS.values()) if given.again else ():
            some = [mutant for mutant in wanted if tests_of(mutant.path) == tests]
            _try(tree, _covered(tree, tests, given.covered or tree.parent), some, given.results)
    print(summary(drawn, kept(given.results)))


def _covered(tree: Path, tests: str, folder: Path) -> Path:
    """Which tests of a folder run which lines, measured where that is not known."""
    folder.mkdir(exist_ok=True)
    covered = folder.resolve() / f"{tests.replace('/', '.')}.json"
    if not covered.exists():
        _in(tree, ["-m", "tests.mutation.covering", tests, str(covered)]).wait()
    return covered


def _try(tree: Path, covered: Path | None, wanted: Sequence[Mutant], results: Path) -> None:
    work = tree.parent / "work"
    work.mkdir(exist_ok=True)
    with _in(tree, ["-m", "tests.mutation.trying", str(work), *([str(covered)] if covered else [])], pipes=True) as trier:
        assert trier.stdin
        assert trier.stdout
        assert trier.stdout.readline() == "ready\n", "it did not start"
        for number, mutant in enumerate(wanted, 1):
            trier.stdin.write(json.dumps(asdict(mutant)) + "\n")
            trier.stdin.flush()
            against = "all that run the line" if covered else "those that name it"
            outcome = {"mutant": mutant.key, "change": changed(mutant), "against": against} | json.loads(trier.stdout.readline())
            with results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(outcome, ensure_ascii=False) + "\n")
            print(
                f"{number}/{len(wanted)} {outcome['outcome']} {mutant.path}:{mutant.line} {mutant.operator} {outcome.get('seconds', '')}",
                flush=True,
            )
        trier.stdin.close()


def changed(mutant: Mutant) -> list[str]:
    """Lines that go and lines that come."""
    before, after = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines(), mutant.source(ROOT).splitlines()
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return [f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-"]


def kept(results: Path) -> dict[str, dict[str, Any]]:
    """The last outcome of every mutant that was tried."""
    if not results.exists():
        return {}
    return {record["mutant"]: record for record in map(json.loads, results.read_text(encoding="utf-8").splitlines())}


def summary(drawn: Sequence[Mutant], known: Mapping[str, Mapping[str, Any]]) -> str:
    """How many were tried, and which lived."""
    tried = [known[mutant.key] for mutant in drawn if mutant.key in known]
    alive = [record for record in tried if record["outcome"] in ALIVE]
    lines = [f"{len(tried)} of {len(drawn)} tried, {len(alive)} lived"]
    return "\n".join([*lines, *(f"{record['outcome']}: {record['mutant']}\n    " + "\n    ".join(record["change"]) for record in alive)])


@contextmanager
def copied() -> Iterator[Path]:
    """The repository's files in a folder of their own, with the reference data beside it where there is some."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        if (shared := ROOT.parent / "shared").is_dir():
            (tree.parent / "shared").symlink_to(shared.resolve())
        yield tree


def _in(tree: Path, arguments: Sequence[str], pipes: bool = False) -> subprocess.Popen[str]:
    """Python in the copy, whose modules come before installed ones; one thread."""
    setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if pipes else {}
    return subprocess.Popen([sys.executable, *arguments], cwd=tree, env=setting, text=True, **streams)  # type: ignore[call-overload, no-any-return]


if __name__ == "__main__":
    main()
