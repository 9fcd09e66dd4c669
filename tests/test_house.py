"""The house rules that a machine can check: who imports whom, nothing unpickled, functions that fit on a screen."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks.studies.house import circles

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "exporters": {"exporters", "pipeline"},
    "deploy": {"deploy", "exporters", "pipeline"},
    "benchmarks": {"benchmarks", "exporters", "pipeline"},
    "trimline": {"trimline", "deploy", "benchmarks", "exporters", "pipeline"},
}
LONGEST_FUNCTION = 80
# Modules whose readers run code that stands in the file, and calls that do so by way of another module.
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/\w")
CROWD = 16  # modules beside each other; more only in collections of one kind
COLLECTIONS = {"methods", "families", "targets", "cli"}
ROOM_ROW = re.compile(r"^\| `([\w/.]+)` \|.*\| ([^|]*) \|$")


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides its room"
            yield node.lineno, node.module or ""


@cache
def arrows() -> dict[str, dict[str, int]]:
    """Module of ours to modules of ours that it imports, with a line: at the top, inside functions and for type checkers alike.

    A package's face that one of its own modules names is left out: it is that module's own house.
    """
    paths = {dotted(path): path for path in sources(*MAY_IMPORT)}
    found: dict[str, dict[str, int]] = {name: {} for name in paths}
    for name, path in paths.items():
        for line, module in taken_from(tree_of(path)):
            known = next((one for one in (module, module.rpartition(".")[0]) if one in paths), None)
            if known and known != name and not (paths[known].name == "__init__.py" and name.startswith(f"{known}.")):
                found[name].setdefault(known, line)
    return found


def dotted(path: Path) -> str:
    """Name of a module of the tree."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def taken_from(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module or name in a module) of every import: ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def rooms() -> dict[str, dict[str, tuple[str, ...]]]:
    """Folder to its rooms, from the ground up, with the modules that each may not know: the tables of docs/architecture.md."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    folder = None
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            folder = heading[1] if (heading := re.fullmatch(r"### `([\w/]+)/`", line)) else None
        elif folder and (row := ROOM_ROW.match(line)):
            tables.setdefault(folder, {})[row[1].strip("/")] = tuple(re.findall(r"`([\w.]+)`", row[2]))
    return tables


def room_of(path: Path, folder: str) -> str:
    """The room of a folder that a file lies in."""
    return path.relative_to(ROOT / folder).parts[0]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_room_is_looked_at() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(room)
        for line, module in imported(tree_of(path))
        if (top := module.split(".")[0]) in {*MAY_IMPORT, "tests"} and top not in MAY_IMPORT[room]
    ]
    assert wrong == []


def test_there_are_no_circles() -> None:
    assert circles(arrows()) == []


def test_the_circle_finder_sees_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_folder_is_crowded() -> None:
    beside = Counter(path.parent.relative_to(ROOT) for path in sources(*MAY_IMPORT) if path.name != "__init__.py")
    assert {str(folder): count for folder, count in beside.items() if count > CROWD and folder.name not in COLLECTIONS} == {}


@pytest.mark.parametrize("folder", rooms())
def test_every_module_has_a_room(folder: str) -> None:
    there = {room_of(path, folder) for path in sources(folder)} - {"__init__.py", "__main__.py"}
    assert there == set(rooms()[folder])


@pytest.mark.parametrize("folder", rooms())
def test_rooms_stand_on_those_below(folder: str) -> None:
    floor = {room: place for place, room in enumerate(rooms()[folder])}
    modules = {dotted(path): room_of(path, folder) for path in sources(folder) if room_of(path, folder) in floor}
    up = [
        f"{name}:{line} imports {other}"
        for name, room in modules.items()
        for other, line in arrows()[name].items()
        if other in modules and floor[modules[other]] > floor[room]
    ]
    assert up == []


@pytest.mark.parametrize("folder", rooms())
def test_rooms_do_not_know_what_they_may_not(folder: str) -> None:
    known = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for room, strangers in rooms()[folder].items()
        for path in sources(folder)
        if room_of(path, folder) == room
        for line, module in taken_from(tree_of(path))
        if any(f"{module}.".startswith(f"{stranger}.") for stranger in strangers)
    ]
    assert known == []


def test_the_name_of_a_class_means_one_thing() -> None:
    defined = [(node.name, path) for path in sources(*MAY_IMPORT) for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    files = Counter(name for name, _ in set(defined))
    assert [name for name, count in files.items() if count > 1] == []


def test_steps_are_resolved_in_one_place() -> None:
    asking = re.compile(r"\bmethod_named\(|\bMETHODS\[|isinstance\([\w.]+, \(?\w+Method\b")
    found = {str(path.relative_to(ROOT)) for path in sources("pipeline", "trimline") if asking.search(path.read_text(encoding="utf-8"))}
    assert found == {"pipeline/prune/steps.py", "pipeline/prune/methods/__init__.py"}


def test_every_room_says_what_it_may_not_know() -> None:
    assert [f"{folder}/{room}" for folder, table in rooms().items() for room, strangers in table.items() if not strangers] == []


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_nothing_is_unpickled(room: str) -> None:
    wrong: list[str] = []
    for path in sources(room):
        tree = tree_of(path)
        wrong += [f"{path.relative_to(ROOT)}:{line} {module}" for line, module in imported(tree) if module.split(".")[0] in UNPICKLERS]
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        wrong += [
            f"{path.relative_to(ROOT)}:{call.lineno} {name}" for call in calls if (name := ast.unparse(call.func)) in UNPICKLING_CALLS
        ]
    assert wrong == []


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_yaml_makes_plain_values_only(room: str) -> None:
    wrong: list[str] = []
    for path in sources(room):
        tree = tree_of(path)
        safe = {"yaml.SafeLoader"} | {
            node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, node.bases)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load"):
            loaders = {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "Loader"}
            wrong += [] if loaders and loaders <= safe else [f"{path.relative_to(ROOT)}:{call.lineno}"]
    assert wrong == []


@pytest.mark.parametrize("room", [*MAY_IMPORT, "tests"])
def test_functions_fit_on_a_screen(room: str) -> None:
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name} has {length} lines"
        for path in sources(room)
        for function in functions(tree_of(path))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_everything_is_annotated(room: str) -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in sources(room)
        for function in functions(tree_of(path))
        if function.returns is None or any(a.annotation is None for a in _own_arguments(function))
    ]
    assert bare == []


def _own_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    arguments = function.args
    return [a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg not in {"self", "cls", "_"}]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    texts = [*sources(*MAY_IMPORT, "tests"), ROOT / "Makefile"]
    texts += [path for pattern in ("*.md", "docs/*.md", "recipes/*.yaml", "findings/*") for path in ROOT.glob(pattern)]
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_every_finding_is_described_and_pinned() -> None:
    folder = ROOT / "findings"
    table = (folder / "README.md").read_text(encoding="utf-8")
    for script in sorted(set(folder.glob("*.sh")) - {folder / "lib.sh"}):
        text = script.read_text(encoding="utf-8")
        assert f"({script.name})" in table, script.name
        assert all(f"\n# {part}" in text for part in ("Guess: ", "Seen", "For users of Trimline: ")), script.name
        installed = re.findall(r"^packages ((?:.*\\\n)*.*)", text, re.MULTILINE)
        assert installed, script.name
        assert all("==" in package for line in installed for package in line.replace("\\\n", " ").split()), script.name


def test_the_checks_see_what_they_are_for() -> None:
    tree = ast.parse("import pickle\ndef f(a):\n    from trimline import api\n    return torch.load(a)\n")
    assert [module for _, module in imported(tree)] == ["pickle", "trimline"]
    assert [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)] == ["torch.load"]
    assert MACHINE_PATH.search("/".join(('open("', "home", "me")))
    assert not MACHINE_PATH.search("see docs/work/plan or ~/home")
