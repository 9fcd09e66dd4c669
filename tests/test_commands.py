"""Commands that pages, the Makefile, CI and our own texts name: what they run is there. Read, not run: many take hours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CHECKS = ROOT / ".github" / "workflows" / "checks.yml"
SCRIPTS = [ROOT / "Makefile", ROOT / ".ci" / "run", *sorted(CHECKS.parent.glob("*.yml")), *sorted(ROOT.glob("tests/servers/*.sh"))]
PACKAGES = ("pipeline", "exporters", "deploy", "benchmarks", "trimline", "tests")
MODULE = re.compile(rf"-m ((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
# In code on a page, in a step of a workflow, and in a script's or a rule's line, after variables.
TARGET = re.compile(r"(?:`|run: |^)(?:[A-Z_]+=\S+ )*make ([a-z][\w-]*)", re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def runs(name: str) -> bool:
    """Whether ``python -m name`` does something: a module without a guard ends at once, and says nothing."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir():
        return (path / "__main__.py").is_file()
    return path.with_suffix(".py").is_file() and 'if __name__ == "__main__":' in text_of(path.with_suffix(".py"))


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: page.name)
def test_modules_that_pages_and_scripts_run_are_there(page: Path) -> None:
    assert [name for name in MODULE.findall(text_of(page)) if not runs(name)] == []


def test_modules_that_our_own_texts_run_are_there() -> None:
    assert [f"{path.relative_to(ROOT)}: {name}" for path in sources() for name in MODULE.findall(text_of(path)) if not runs(name)] == []


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert [f"{page.name}: {name}" for page in (*PAGES, *SCRIPTS) for name in TARGET.findall(text_of(page)) if name not in targets] == []


def test_the_patterns_see_commands() -> None:
    found = {name for page in (*PAGES, *SCRIPTS) for name in MODULE.findall(text_of(page))}
    assert {"benchmarks.studies.gpu", "benchmarks.studies.serving.load", "deploy.sbom", "trimline.cli"} <= found
    assert TARGET.findall("- run: make one\nA=b make two\n`make three A=1`, to make four") == ["one", "two", "three"]
    assert runs("trimline.cli")
    assert not runs("trimline.cli.app")
    assert not runs("benchmarks.gone")


def test_every_change_is_checked() -> None:
    assert text_of(ROOT / ".ci" / "run").splitlines()[-2:] == ["make quality", "make test"]
    workflow = yaml.safe_load(text_of(CHECKS))
    assert workflow[True].keys() == {"pull_request", "push"}  # YAML reads the key `on` as true
    assert workflow["jobs"]["checks"]["steps"][-1] == {"run": ".ci/run"}
