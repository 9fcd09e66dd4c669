"""The wheel holds everything that Trimline runs with, and neither studies nor tests; nothing that it holds imports a study."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "deploy", "exporters", "pipeline", "trimline")
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
    for name in (*PACKAGES, "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = subprocess.run([sys.executable, "-P", "-c", BUILD], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(tree.parent.glob("*.whl")))


def test_the_wheel_holds_all_code_but_studies(wheel: zipfile.ZipFile) -> None:
    assert {name for name in wheel.namelist() if name.endswith(".py")} == shipped("*.py")


def test_the_wheel_holds_templates_and_styles_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    data = {name for name in wheel.namelist() if not name.endswith(".py") and ".dist-info/" not in name}
    assert data == shipped("*.jinja") | shipped("*.css") | shipped("*.js")
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
