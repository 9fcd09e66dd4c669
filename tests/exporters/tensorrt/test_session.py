"""The decoder of engines with a stand-in for TensorRT and CUDA: what it computes, and the parts that a call is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.timing.worker import Worker
from exporters.onnx.running.session import OnnxDecoder
from exporters.tensorrt.decoder import along
from exporters.tensorrt.session import EngineDecoder
from pipeline.common.errors import TrimlineError
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.tensorrt.stand_in import engine_folder, stand_in


@pytest.fixture
def gpu(monkeypatch):
    return stand_in(monkeypatch)


@pytest.fixture
def folder(sparse_onnx, tmp_path):
    return engine_folder(sparse_onnx, tmp_path / "engine")


def test_an_engine_is_fed_what_the_graph_is_fed(folder, sparse_onnx, gpu):
    engine, graph = EngineDecoder(folder), OnnxDecoder(sparse_onnx, 1)
    ids = gate_tokens(128, rows=2, length=16).numpy()
    pieces = [(0, 7), *((at, at + 1) for at in range(7, 16))]
    np.testing.assert_allclose(along(engine, ids, pieces), along(graph, ids, pieces), atol=1e-5)
    np.testing.assert_array_equal(engine.greedy(ids, 6), graph.greedy(ids, 6))
    assert engine.parts.take() == {}, "nobody asked for these"


def test_the_last_positions_logits_come_back_with_every_call(folder, gpu):
    engine, ids = EngineDecoder(folder), gate_tokens(128, rows=2, length=9).numpy()
    logits, past = engine.run(ids, engine.empty(2))
    torch.testing.assert_close(engine.said, logits[:, -1])
    assert gpu.done == ["in", "compute", "out", "waited"]
    again, first = engine.run(ids[:, -1:], past)[0], engine.run(ids[:, -1:], past)[0]
    torch.testing.assert_close(again, first)


def test_the_parts_of_a_call_are_told_apart_by_events(folder, gpu):
    engine, ids = EngineDecoder(folder), gate_tokens(128, rows=1, length=9).numpy()
    _, past = engine.run(ids, engine.empty())
    engine.run(ids[:, -1:], past)
    gpu.now += 99.0  # what happens before somebody asks is nobody's
    parts = engine.parts.take()
    enqueue = parts.pop("enqueue")
    assert parts == {"h2d": [0.001] * 2, "compute": [0.005] * 2, "d2h": [0.002] * 2}
    assert len(enqueue) == 2
    assert all(0 < seconds < 1 for seconds in enqueue)
    assert engine.parts.take() == {}


def test_prompts_and_steps_take_their_own_profiles(folder, gpu):
    engine, ids = EngineDecoder(folder), gate_tokens(128, rows=1, length=4).numpy()
    engine.greedy(ids, 3)
    assert engine._context.profiles == [0, 1]
    with pytest.raises(TrimlineError, match=r"takes no input_ids of shape \(1, 65\) in its profile prefill"):
        engine.logits(np.zeros((1, 65), np.int64))


def test_a_worker_tells_the_prompts_parts_from_the_steps(folder, gpu):
    worker = Worker()
    assert "problem" not in worker.answer({"do": "load", "folder": str(folder), "threads": 1, "runtime": "tensorrt"})
    for _ in range(2):  # a second request has no parts of the first
        reply = worker.answer({"do": "run", "prompt": 6, "output": 4, "batch": 2, "vocab": 128, "seed": 0})
        assert {metric: parts["compute"] for metric, parts in reply["parts"].items()} == {"prefill": [0.005], "decode": [0.005] * 3}
        assert [len(parts["enqueue"]) for parts in reply["parts"].values()] == [1, 3]
    short = worker.answer({"do": "run", "prompt": 6, "output": 1, "batch": 1, "vocab": 128, "seed": 0})
    assert set(short["parts"]) == {"prefill"}
