"""What docs/mutants.md says is what was measured, and every mutant that lived is named there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "results.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "mutants.md"
ALIVE = {"lived", "unreached"}


@pytest.fixture(scope="module")
def last() -> dict[str, dict[str, str]]:
    """The last outcome of every mutant."""
    return {record["mutant"]: record for record in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_says_what_was_measured(last: dict[str, dict[str, str]], page: str) -> None:
    outcomes = [record["outcome"] for record in last.values()]
    alive = sum(outcome in ALIVE for outcome in outcomes)
    same = len(re.findall(r"^\| .* \| the same: ", page, re.MULTILINE))
    (row,) = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) of (\d+) \|$", page, re.MULTILINE)
    assert tuple(map(int, row)) == (300, len(outcomes), len(outcomes) - alive, same, alive - same, len(outcomes) - same)


def test_every_mutant_that_lived_is_named(last: dict[str, dict[str, str]], page: str) -> None:
    alive = [record for record in last.values() if record["outcome"] in ALIVE]
    named = re.findall(r"^\| `([\w/.]+)` \| `(.*)` \| `(.*)` \| (?:the same: |alive: )", page, re.MULTILINE)
    assert sorted(named) == sorted((record["mutant"].partition(":")[0], *_lines(record)) for record in alive)


def _lines(record: dict[str, str]) -> tuple[str, str]:
    """The line that went and the one that came, as a table can hold them."""
    before, after = (line[2:].replace("|", "\\|") for line in record["change"])
    return before, after
