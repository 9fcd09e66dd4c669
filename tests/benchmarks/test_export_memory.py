"""An export of a model of medium size, in a process of its own: how often it holds the weights at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.export_memory import BAR, in_a_child
from tests.tiny import tiny_model

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
SIZES = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 64}


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 million weights, 226 MB in fp32."""
    return tiny_model("llama", tmp_path_factory.mktemp("medium"), **SIZES, num_key_value_heads=4)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), pytest.param("int4", marks=pytest.mark.slow)])
def test_the_weights_are_held_two_and_a_half_times_at_most(medium: Path, precision: str) -> None:
    found = in_a_child(medium, "fused", precision, threads=2)
    assert found["weights"] > 200e6
    assert 0.2 < found["times"] <= BAR, found  # quantised weights are a fraction of those in fp32
