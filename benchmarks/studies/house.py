"""The plan of the house in figures: rooms, floors, arrows, circles, lookups. Of the present tree, and of a commit to compare it with.

It reads files and imports nothing of what it reads, so it measures trees of any age:
``python -m benchmarks.studies.house --before 75026d1``.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.studies.pages import markdown_table
from pipeline.common.errors import TrimlineError

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "exporters", "deploy", "benchmarks", "trimline")
LOOSE = ("pipeline", "benchmarks", "trimline", "exporters/onnx")
LOOKUP = re.compile(r"\bmethod_named\(|\bMETHODS\[")
KIND = re.compile(r"isinstance\([\w.]+, \(?\w+Method\b")
SUBLAYER_TABLE = re.compile(r"\{Space\.FFN: Sublayer\.FFN|\{Sublayer\.FFN: Space\.FFN")
Graph = Mapping[str, Collection[str]]


class Tree:
    """The sources of our five packages below a folder."""

    def __init__(self, root: Path) -> None:
        self.paths = {_dotted(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
        self.texts = {name: path.read_text(encoding="utf-8") for name, path in self.paths.items()}
        self.nodes = {name: list(ast.walk(ast.parse(text))) for name, text in self.texts.items()}
        self.root = root

    def imports(self) -> dict[str, set[str]]:
        """Module to the modules of the tree that it imports, wherever the import stands; see ``tests/test_house.py``."""
        return {name: {module for module in self._taken(name) if module != name} for name in self.texts}

    def _taken(self, name: str) -> Iterable[str]:
        for node in self.nodes[name]:
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for module in wanted:
                known = next((one for one in (module, module.rpartition(".")[0]) if one in self.paths), None)
                if known and not (self.paths[known].name == "__init__.py" and name.startswith(f"{known}.")):
                    yield known

    def loose(self, folder: str) -> int:
        """Modules directly in a folder."""
        return len([path for path in (self.root / folder).glob("*.py") if path.name != "__init__.py"])

    def shared_class_names(self) -> list[str]:
        """Names of classes that are defined in more than one file."""
        defined = Counter(name for nodes in self.nodes.values() for name in {n.name for n in nodes if isinstance(n, ast.ClassDef)})
        return sorted(name for name, files in defined.items() if files > 1)

    def count(self, pattern: re.Pattern[str]) -> str:
        """Places in code that a pattern finds, and the files they are in; this file has the patterns, and does not count."""
        found = [len(pattern.findall(text)) for name, text in self.texts.items() if name != "benchmarks.studies.house"]
        return f"{sum(found)} in {len([number for number in found if number])} files"

    def shipped_lines(self) -> tuple[int, int]:
        """Lines of ``benchmarks`` in the wheel that only make tables of the docs, and all of its lines there.

        A study is a module that no stage reaches: nothing in ``trimline``, ``deploy`` or ``exporters`` leads to it.
        """
        lines = {name: text.count("\n") for name, text in self.texts.items() if name.startswith("benchmarks")}
        shipped = {name: size for name, size in lines.items() if not name.startswith("benchmarks.studies")}
        graph, used = self.named(), set[str]()
        waiting = [name for name in graph if name.startswith("trimline.")]
        while waiting:
            name = waiting.pop()
            if name not in used:
                used.add(name)
                waiting += graph[name]
        faces = {name for name in shipped if self.paths[name].name == "__init__.py"}
        return sum(size for name, size in shipped.items() if name not in used | faces), sum(shipped.values())

    def named(self) -> dict[str, set[str]]:
        """As ``imports``, with modules that stand in strings, by which child processes are started."""
        graph = self.imports()
        for name, nodes in self.nodes.items():
            strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            graph[name] |= strings & set(self.paths)
        return graph


def rooms_of(graph: Graph, package: str) -> dict[str, set[str]]:
    """Rooms (folders and modules directly in a package) to the rooms that they import."""
    inside = {name: name.split(".")[1] for name in graph if name.startswith(f"{package}.")}
    rooms: dict[str, set[str]] = {room: set() for room in inside.values()}
    for name, room in inside.items():
        rooms[room] |= {inside[other] for other in graph[name] if other in inside} - {room}
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Groups that reach each other, the largest first."""
    reach = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted((sorted(group) for group in groups), key=len, reverse=True)


def _reached(graph: Graph, start: str) -> set[str]:
    seen, waiting = set[str](), list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def floors(graph: Graph) -> tuple[list[list[str]], int]:
    """Rooms by floor, from the ground up, and the arrows that run back up: those whose room stands on a floor above.

    Where a circle leaves no room that stands on finished floors alone, the one with the fewest open arrows comes next.
    """
    left, built, found, up = dict(graph), set[str](), list[list[str]](), 0
    while left:
        ready = [room for room, below in left.items() if set(below) <= built]
        if not ready:
            ready = [min(left, key=lambda room: (len(set(left[room]) - built), room))]
            up += len(set(left[ready[0]]) - built)
        found.append(sorted(ready))
        built |= set(ready)
        left = {room: below for room, below in left.items() if room not in built}
    return found, up


def figures(tree: Tree) -> dict[str, str]:
    """The rows of the table."""
    graph = tree.imports()
    rooms = rooms_of(graph, "pipeline")
    stories, up = floors(rooms)
    studies, shipped = tree.shipped_lines()
    found = circles(graph)
    return {
        "loose files in `pipeline/`, `benchmarks/`, `trimline/`, `exporters/onnx/`": ", ".join(str(tree.loose(folder)) for folder in LOOSE),
        "`pipeline/`: rooms": str(len(rooms)),
        "`pipeline/`: floors": str(len(stories)),
        "`pipeline/`: import arrows between rooms": str(sum(map(len, rooms.values()))),
        "`pipeline/`: arrows that run back up": str(up),
        "`pipeline/`: circles of rooms": str(len(circles(rooms))),
        "circles of modules (files in each)": ", ".join(str(len(group)) for group in found) or "none",
        "lookups of a method by its name": tree.count(LOOKUP),
        "`isinstance` on methods": tree.count(KIND),
        "tables from space to sublayer": tree.count(SUBLAYER_TABLE),
        "names of classes that are defined in several files": str(len(tree.shared_class_names())),
        "lines of studies in the wheel, of all of `benchmarks/`": f"{studies:,} of {shipped:,}",
    }


def tree_at(commit: str, folder: Path) -> Tree:
    """The tree of a commit, unpacked into a folder.

    Raises:
        TrimlineError: git knows no such commit.
    """
    done = subprocess.run(["git", "archive", commit, *PACKAGES], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise TrimlineError(f"git has no tree of {commit}.", "Name a commit of this repository, and fetch its history.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return Tree(folder)


def main(
    before: Annotated[str | None, typer.Option(help="A commit to compare with.")] = None,
    names: Annotated[bool, typer.Option("--names", help="List the names of classes that are defined in several files.")] = False,
) -> None:
    """Print the table."""
    now = Tree(ROOT)
    columns = [figures(now)]
    with tempfile.TemporaryDirectory() as folder:
        if before:
            columns.insert(0, figures(tree_at(before, Path(folder))))
    heads = [before, "now"] if before else ["now"]
    typer.echo(markdown_table(["", *heads], [[row, *(column[row] for column in columns)] for row in columns[0]]))
    if names:
        typer.echo(", ".join(now.shared_class_names()))


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


if __name__ == "__main__":
    typer.run(main)
