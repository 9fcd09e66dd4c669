"""Which mutants there are, by cosmic-ray's operators, and which of them a seed draws."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.rooms import ROOMS

Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: of the file, from the root of the repository.
        line: where the change begins.
        operator, occurrence: cosmic-ray's name of the kind of change, and which of the places where it applies.
        variant: which of the changes of that kind at the place: a number may become larger or smaller.
        place: the file, the line as it reads, which of the file's lines that read so, and the column: other lines may come and go.
    """

    path: str
    line: int
    operator: str
    occurrence: int
    place: str
    variant: int = 0

    @property
    def key(self) -> str:
        """The same for as long as the line is."""
        return f"{self.place} {self.operator.removeprefix('core/')} {self.variant}"

    def source(self, root: Path) -> str:
        """The whole file with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed = mutate_code((root / self.path).read_text(encoding="utf-8"), get_operator(self.operator)(), self.occurrence)
        assert changed is not None, self.key
        return changed


def draw(root: Path, count: int, seed: int) -> tuple[list[Mutant], int]:
    """That many mutants, and how many places there are to draw from.

    A place is a spot in a file and a kind of change: that a plus may become ten other operators makes it no likelier to be
    drawn than a number. At a place that is drawn, one of its changes is. Lots are hashes of the seed and the place, so that a changed line
    elsewhere changes nothing.
    """
    places: dict[tuple[str, str], list[Mutant]] = {}
    for path in files(root):
        for mutant in mutants_of(root, path):
            places.setdefault((mutant.place, mutant.operator.split("_")[0]), []).append(mutant)
    lots = {place: int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:8]) for place in places}
    drawn = sorted(places, key=lambda place: (lots[place], place))[:count]
    return [places[place][lots[place] % len(places[place])] for place in drawn], len(places)


def files(root: Path) -> list[str]:
    """Every module of the rooms that mutants are made of."""
    return sorted(str(path.relative_to(root)) for room in ROOMS for path in (root / room).glob("*.py"))


def mutants_of(root: Path, path: str) -> Iterator[Mutant]:
    """All of one file; annotations, which nothing computes with, are left as they are."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    text = (root / path).read_text(encoding="utf-8")
    idle, nodes, lines = list(_annotations(ast.parse(text))), list(ast_nodes(get_ast(text))), _lines(text)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # it asks for names of variables, or changes nothing
            continue
        found = (start for node in nodes for start, _ in operator().mutation_positions(node))
        variants: Counter[Position] = Counter()
        for occurrence, start in enumerate(found):
            variants[start] += 1
            if name != "core/NoOp" and not any(begins <= start < ends for begins, ends in idle):
                place = f"{path}: {lines[start[0] - 1]}, at {start[1]}"
                yield Mutant(path, start[0], name, occurrence, place, variants[start])


def _lines(text: str) -> list[str]:
    """Every line as it reads, with a number where others read the same."""
    seen: Counter[str] = Counter()
    found = []
    for line in map(str.strip, text.splitlines()):
        seen[line] += 1
        found.append(f"{line!r}" if seen[line] == 1 else f"{line!r} ({seen[line]})")
    return found


def _annotations(tree: ast.AST) -> Iterator[tuple[Position, Position]]:
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.expr):
                ends = annotation.end_lineno or 0, annotation.end_col_offset or 0
                yield (annotation.lineno, annotation.col_offset), ends
