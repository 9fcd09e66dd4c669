"""Which tests run which lines: one run of the tests of a room under coverage, told what runs at every moment.

A fixture that several tests share runs for the first of them. Its lines belong to all tests that ask for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

from tests.mutation.rooms import QUICK, ROOMS

SHARED = "fixture "


class Watching:
    """Pytest's plugin: names the context that lines are counted for, and keeps how long tests take."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.asking: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self._running = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        for name in getattr(item, "fixturenames", ()):
            for scope in _scopes(item.nodeid):
                self.asking.setdefault(f"{SHARED}{scope}::{name}", []).append(item.nodeid)
        return (yield from self._as(item.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        return (yield from self._as(f"{SHARED}{fixturedef.baseid}::{fixturedef.argname}"))

    def _as(self, context: str) -> Iterator[None]:
        before, self._running = self._running, context
        self.coverage.switch_context(context)
        try:
            return (yield)
        finally:
            self._running = before
            self.coverage.switch_context(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            print(f"fails without a mutant: {report.nodeid}", file=sys.__stderr__, flush=True)


def _scopes(nodeid: str) -> Iterator[str]:
    """Where a fixture of a test may stand: its file, the folders above it, or nowhere."""
    path = nodeid.partition("::")[0]
    yield path
    while path:
        path = path.rpartition("/")[0]
        yield path


def cover(tests: str, out: Path) -> None:
    """Writes the tests in a folder by file and line, their seconds, and the modules of others that were imported."""
    before, coverage = set(sys.modules), Coverage(data_file=None, source=[room for room in ROOMS if ROOMS[room] == tests])
    watching = Watching(coverage)
    coverage.start()
    pytest.main(["-q", "-p", "no:cacheprovider", "-m", QUICK, tests], plugins=[watching])
    coverage.stop()
    data, root = coverage.get_data(), Path.cwd()
    lines: dict[str, dict[int, list[str]]] = {}
    for name in data.measured_files():
        by_line = {line: _tests(contexts, watching) for line, contexts in data.contexts_by_lineno(name).items()}
        lines[str(Path(name).relative_to(root))] = by_line
    own = {path.name for path in root.iterdir()}
    others = sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in own)
    out.write_text(json.dumps({"lines": lines, "seconds": watching.seconds, "others": others}))


def _tests(contexts: list[str], watching: Watching) -> list[str]:
    """By name, for what a shared fixture runs its tests; an empty name stands for what runs as a module is imported."""
    return sorted({test for context in contexts for test in watching.asking.get(context, [context])})


if __name__ == "__main__":
    cover(sys.argv[1], Path(sys.argv[2]))
