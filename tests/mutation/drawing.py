"""Which mutants there are, by cosmic-ray's operators, and which of them a seed draws."""

from __future__ import annotations

import ast
import random
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
    """

    path: str
    line: int
    operator: str
    occurrence: int

    @property
    def key(self) -> str:
        return f"{self.path}:{self.line} {self.operator} {self.occurrence}"

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
    drawn than a number. At a place that is drawn, one of its changes is.
    """
    places: dict[tuple[str, Position, str], list[Mutant]] = {}
    for path in files(root):
        for start, mutant in mutants_of(root, path):
            places.setdefault((path, start, mutant.operator.split("_")[0]), []).append(mutant)
    lots = random.Random(seed)
    drawn = lots.sample(sorted(places), min(count, len(places)))
    return [lots.choice(places[place]) for place in drawn], len(places)


def files(root: Path) -> list[str]:
    """Every module of the rooms that mutants are made of."""
    return sorted(str(path.relative_to(root)) for room in ROOMS for path in (root / room).glob("*.py"))


def mutants_of(root: Path, path: str) -> Iterator[tuple[Position, Mutant]]:
    """All of one file, with where each begins; annotations, which nothing computes with, are left as they are."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    text = (root / path).read_text(encoding="utf-8")
    idle, nodes = list(_annotations(ast.parse(text))), list(ast_nodes(get_ast(text)))
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():  # it asks for names of variables, or changes nothing
            continue
        found = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(found):
            if name != "core/NoOp" and not any(begins <= start < ends for begins, ends in idle):
                yield start, Mutant(path, start[0], name, occurrence)


def _annotations(tree: ast.AST) -> Iterator[tuple[Position, Position]]:
    for node in ast.walk(tree):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.expr):
                ends = annotation.end_lineno or 0, annotation.end_col_offset or 0
                yield (annotation.lineno, annotation.col_offset), ends
