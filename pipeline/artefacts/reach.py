"""The code that a stage can reach, and its hash, which stands in the keys of artefacts. Files are read; nothing is imported.

From the module that does a stage's work the closure follows every import, those inside functions too, and every string that
is the dotted name of one of our modules, since child processes are started by such names. What stands under
``if TYPE_CHECKING:`` never runs and does not count. The package around a module that is reached counts by its own
code, and is not followed.

Of a module its syntax tree counts, without docstrings: comments, blank lines and line breaks change no key. Another Python may
write a tree in another way, and its keys differ. Files beside the module that are no code (templates, styles) count by their
bytes, and so does what it names: a script that it copies or runs, or a folder of such files.

A collection is a package whose ``__init__`` lists its modules in a table: methods, families, targets. Its users get all of
them, and use one. Whoever knows which one says so: then the table is left out, with its imports, and a new line in it
changes no key. A collection for which nothing is said is a package like any other, so all of its members count.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.artefacts.artefact import digest, file_digest

ROOMS = ("trimline", "pipeline", "exporters", "deploy", "benchmarks")
ROOT = Path(__file__).parents[__name__.count(".")]  # the folder that holds the rooms
DOTTED = re.compile(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+")
NAME = re.compile(r"[\w.-]+")  # of a module, a file or a folder
CODE, PROSE = {".py", ".pyc"}, {".md"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Members = Mapping[str, Collection[str]]


def code_of(entries: Iterable[str], members: Members | None = None, root: Path = ROOT) -> str:
    """Hash of all code that some modules can reach.

    Args:
        entries: dotted names of the modules that do a stage's work.
        members: by the dotted name of a collection, those of its modules that the stage uses; () for none.
        root: the folder that holds the packages.
    """
    chosen = members or {}
    found = reached(entries, chosen, root)
    return digest({name: _module(root, name, name in chosen).own for name in found | _packages_of(found)})


def reached(entries: Iterable[str], members: Members | None = None, root: Path = ROOT) -> frozenset[str]:
    """The modules that ``code_of`` follows, by dotted name, without the packages around them."""
    chosen, found, waiting = members or {}, set[str](), list(entries)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += (*_module(root, name, name in chosen).arrows, *chosen.get(name, ()))
    return frozenset(found)


def forget() -> None:
    """Has files read again that were read before: by default a process reads each once, as it imports each once."""
    for known in (_module, _file_of, _names_in, _digest_of):
        known.cache_clear()


@dataclass(frozen=True)
class _Module:
    """Hash of a module's own code, and the modules that it leads to."""

    own: str
    arrows: frozenset[str]


@cache
def _module(root: Path, name: str, is_collection: bool) -> _Module:
    path = _file_of(root, name)
    if path is None and name.split(".")[0] not in ROOMS:  # a method that a program of somebody else's registered
        return _Module(_digest_of_foreign(name), frozenset())
    if path is None:
        raise ModuleNotFoundError(f"There is no module {name} below {root}.")
    said = _said(path.read_text(encoding="utf-8"), name if is_collection else "")
    arrows = frozenset((*_imported(root, said), *_named(root, said))) - {name}
    files = {*_data_in(path.parent), *_files_named(path.parent, said), *_scripts_named(root, arrows, said)}
    return _Module(digest({"code": said.code, "data": {str(file.relative_to(root)): _digest_of(file) for file in files}}), arrows)


def _digest_of_foreign(name: str) -> str:
    """Hash of a module's file as far as it has one; what it imports in turn is nobody's that is known here."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return digest({"module": name, "file": _digest_of(Path(file)) if file and Path(file).is_file() else ""})


@cache
def _file_of(root: Path, name: str) -> Path | None:
    """Where a module of ours lies; None for names of anything else."""
    place = root.joinpath(*name.split("."))
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file()), None) if name.split(".")[0] in ROOMS else None


def _packages_of(names: Iterable[str]) -> set[str]:
    return {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}


@dataclass(frozen=True)
class _Said:
    """What a source text says, wherever it stands.

    Attributes:
        code: hash of its syntax tree without docstrings.
        imports: (module, name taken out of it or "").
        texts: its strings that may be a name of something.
    """

    code: str
    imports: frozenset[tuple[str, str]]
    texts: frozenset[str]


@cache
def _said(source: str, collection: str) -> _Said:
    """Of the ``__init__`` of a collection, what it says beside its table."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    if collection:
        _drop_table(tree, collection)
    imports, texts, waiting = set[tuple[str, str]](), set[str](), list[ast.AST]([tree])
    while waiting:
        node = waiting.pop()
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imports |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            texts.add(node.value)
        waiting.extend(ast.iter_child_nodes(node))
    return _Said(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imports), frozenset(texts))


def _drop_table(tree: ast.Module, package: str) -> None:
    """Takes out of a collection's ``__init__`` what is made of its members, and the imports of these."""
    homes = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}.")
        for alias in node.names
    }
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    tables = {node: used for node in assigned if (used := _names_of(node) & set(homes))}
    members = {homes[name] for used in tables.values() for name in used}
    tree.body = [node for node in tree.body if node not in tables and not (isinstance(node, ast.ImportFrom) and node.module in members)]


def _names_of(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """What an assigned value is made of."""
    return {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)} if node.value else set()


def _imported(root: Path, said: _Said) -> Iterator[str]:
    """Modules of ours that are imported; of a package, the modules that are taken out of it."""
    for module, name in said.imports:
        if _file_of(root, module):
            inside = f"{module}.{name}"
            yield inside if name and _file_of(root, inside) else module


def _named(root: Path, said: _Said) -> Iterator[str]:
    """Modules that stand in strings; a package that is run starts with its ``__main__``."""
    for text in filter(DOTTED.fullmatch, said.texts):
        yield from (name for name in (text, f"{text}.__main__") if _file_of(root, name))


@cache
def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _data_in(folder: Path) -> Iterator[Path]:
    """Files directly in a folder that are neither code nor prose."""
    for name in _names_in(folder):
        path = folder / name
        if path.suffix not in CODE | PROSE and path.is_file():
            yield path


def _files_named(folder: Path, said: _Said) -> Iterator[Path]:
    """Scripts beside a module that it names, and the data in folders there that it names."""
    for name in _names_in(folder) & said.texts:
        path = folder / name
        yield from _data_in(path) if path.is_dir() else [path]


def _scripts_named(root: Path, arrows: Iterable[str], said: _Said) -> Iterator[Path]:
    """Scripts that a module names and that lie in a package that it imports."""
    for arrow in arrows:
        path = _file_of(root, arrow)
        if path and path.name == "__init__.py":
            yield from (path.parent / name for name in _names_in(path.parent) & said.texts if name.endswith(".py"))


@cache
def _digest_of(path: Path) -> str:
    return file_digest(path)
