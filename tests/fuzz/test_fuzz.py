"""Damaged inputs of every kind: each is opened or refused in a sentence, soon, in little memory, and nothing else happens."""

from __future__ import annotations

import os
import random
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.material import Material, made
from tests.fuzz.watch import judged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a case takes is read from /proc")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai, which builds the graph that is damaged, is not installed")
    return made(tmp_path_factory.mktemp("material"))


def test_there_are_as_many_cases_as_the_docs_say() -> None:
    assert sum(kind.suite for kind in KINDS.values()) >= 500
    assert sum(kind.nightly for kind in KINDS.values()) >= 10_000


@pytest.mark.parametrize("name", KINDS)
def test_the_suite(name: str, material: Material, tmp_path: Path) -> None:
    run(name, 0, KINDS[name].suite, material, tmp_path)


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", KINDS)
def test_nightly(name: str, material: Material, tmp_path: Path) -> None:
    start = int(os.environ.get("FUZZ_SEED", "1000"))
    run(name, start, int(os.environ.get("FUZZ_CASES", KINDS[name].nightly)), material, tmp_path)


def run(name: str, start: int, count: int, material: Material, root: Path) -> None:
    """Cases ``start`` to ``start + count`` of a kind; all complaints at once."""
    complaints = []
    for seed in range(start, start + count):
        room = root / "room"
        room.mkdir()
        opening = KINDS[name].damage(random.Random(f"{name} {seed}"), material, room)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            complaint = judged(opening, room)
        if complaint:
            complaints.append(f"{name} {seed}: {complaint}")
        shutil.rmtree(room)
    assert not complaints, f"{len(complaints)} of {count} cases:\n\n" + "\n\n".join(complaints)
