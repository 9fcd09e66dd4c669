"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks.stage
import benchmarks.timing.timing
from tests.end_to_end.scenario import InProcess, tiny_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Llama and texts; tests only read them."""
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def quick_measuring() -> object:
    """Models timed in this process, in as many rounds whatever else the machine does: results.json grows with each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        patch.setattr(benchmarks.timing.timing, "agrees_with_itself", lambda samples, rounds_per_opening: True)
        yield
