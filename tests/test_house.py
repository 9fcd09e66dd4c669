"""The house rules that a machine can check: who imports whom, nothing unpickled, functions that fit on a screen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


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
    texts = [*sources(*MAY_IMPORT, "tests"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.yaml"), ROOT / "Makefile"]
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_the_checks_see_what_they_are_for() -> None:
    tree = ast.parse("import pickle\ndef f(a):\n    from trimline import api\n    return torch.load(a)\n")
    assert [module for _, module in imported(tree)] == ["pickle", "trimline"]
    assert [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)] == ["torch.load"]
    assert MACHINE_PATH.search("/".join(('open("', "home", "me")))
    assert not MACHINE_PATH.search("see docs/work/plan or ~/home")
