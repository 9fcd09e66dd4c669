"""The factors' sizes from the shapes, and the measurement on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.memory.surgeon import GIB, LLAMA_2_7B, factor_bytes, in_a_child
from pipeline.architecture.geometry import Geometry
from tests.tiny import tiny_model


def test_published_factors_of_a_7b() -> None:
    geometry = Geometry.from_config(LLAMA_2_7B)
    assert factor_bytes(geometry, geometry.family.linears, shared=False) / GIB == pytest.approx(65.3, abs=0.05)
    hidden, ffn = 4096**2, 11008**2
    once = 32 * 4 * (4 * hidden + 2 * ffn + hidden + 3 * hidden + ffn)  # G of q k v o, gate up, down; A of qkv, o, gate and up; down
    assert factor_bytes(geometry, geometry.family.linears, shared=True) == once


def test_a_step_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = in_a_child(tiny_model("llama", tmp_path, intermediate_size=512), windows=2, window=16, threads=1)
    assert 0 < found["model"] <= found["peak"]
    assert 0.2 < found["removed"] < 0.3
