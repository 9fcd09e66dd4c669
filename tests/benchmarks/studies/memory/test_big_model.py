"""The benchmark of models larger than their budget, at a size that fits anywhere."""

from __future__ import annotations

import pytest

from benchmarks.studies.memory.apart import apart
from benchmarks.studies.memory.big_model import MODULE, PLAN, SMALLER, STEPS, paging_cost, rebuild_apart
from benchmarks.studies.memory.random_model import LLAMA_2_7B, RandomTensors, random_model
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions

SMALL = LLAMA_2_7B | {
    "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3, "vocab_size": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("big") / "model", SMALL)


def test_random_weights_are_the_same_whenever_they_are_made(model):
    tensors = RandomTensors(SMALL)
    for name, stored in Checkpoint(model).tensors():
        assert stored.equal(tensors[name])
    assert len(tensors) == len(Checkpoint(model).locations)


@pytest.mark.parametrize("method", STEPS)
def test_a_stage_in_a_process_of_its_own(model, method, tmp_path):
    how = {"memory": "1MB", "threads": 1}
    found = apart(MODULE, "plan", folder=str(model), method=method, out=str(tmp_path / PLAN), windows=2, window=64, **how)
    assert found["seconds"] > 0 < found["peak"]
    again = rebuild_apart(str(model), str(tmp_path / SMALLER), **how)
    assert again["seconds"] > 0
    kept = [block.ffn for block in Checkpoint(tmp_path / SMALLER).geometry.blocks]
    assert sum(kept) == pytest.approx(0.7 * 3 * 192, abs=3 * 32)


def test_what_paging_costs(model):
    found = paging_cost(model, 2, 64, RunOptions(threads=1, memory=1), rounds=3)
    assert len(found["seconds"]["paged"]) == 3
    assert 0 < found["ratio"] < 2
    assert found["tokens"] == 128
