"""What needs an NVIDIA GPU: engines built by TensorRT itself, run and compared. ``make gpu`` runs these; none has been run yet."""

from __future__ import annotations

import json

import numpy as np
import pytest

from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.running.shapes import EngineRequest
from exporters.recipe import BuildSlice
from exporters.tensorrt.session import EngineDecoder
from exporters.tensorrt.stage import build
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.models import OPTIONS

pytestmark = pytest.mark.gpu
pytest.importorskip("tensorrt", reason="TensorRT comes from NVIDIA's own package index")


@pytest.fixture(scope="module")
def engine(sparse_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("engine")
    build(sparse_onnx, BuildSlice(sparsity="require"), [EngineRequest(32, 16, 2)], OPTIONS, out, Events())
    return out


def test_the_engine_is_gated_and_inspected(engine):
    record = json.loads((engine / "build.json").read_text())
    assert record["run"]["run"]
    assert record["flags"] == ["SPARSE_WEIGHTS"]
    assert record["sparse_kernels"]["verdict"] in {"proved", "refuted", "unknown"}
    assert json.loads((engine / "layers.json").read_text())["Layers"]
    assert all(check["passed"] for check in json.loads((engine / "gate.json").read_text())["checks"].values())
    assert (engine / "timing.cache").stat().st_size > 0


def test_its_text_is_the_graphs(engine, sparse_onnx):
    ids = gate_tokens(128, rows=2, length=16).numpy()
    np.testing.assert_array_equal(EngineDecoder(engine).greedy(ids, 8), OnnxDecoder(sparse_onnx, 1).greedy(ids, 8))


def test_shapes_beyond_its_profiles_are_refused(engine):
    with pytest.raises(TrimlineError, match="takes no input_ids of shape"):
        EngineDecoder(engine).logits(gate_tokens(128, rows=1, length=64).numpy())
