"""Smoothing moves outliers and changes nothing; what stays rough is found."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.lowering.outliers import Channels, observe, products_of
from exporters.tensorrt.smooth import LARGEST_ERROR, smooth, too_rough

CHANNELS, OUT = 32, 12


@pytest.fixture
def graph(tmp_path):
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((CHANNELS, OUT)).astype(np.float32) for name in ("q", "k", "shared")}
    weights["q"][::2] = 0
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        *(helper.make_node("MatMul", ["h", name], [f"{name}_out"], name=name) for name in weights),
        helper.make_node("MatMul", ["x", "shared"], ["again"], name="again"),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", OUT]) for name in ("q_out", "k_out", "shared_out", "again")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", CHANNELS])]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(helper.make_graph(nodes, "test", inputs, outputs, tensors), opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def feeds() -> list[dict[str, np.ndarray]]:
    values = np.abs(np.random.default_rng(1).standard_normal((3, 20, CHANNELS))).astype(np.float32)
    values[..., 5] *= 100  # the outlier
    return [{"x": part} for part in values]


def results(model: onnx.ModelProto) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds()[0])


def test_it_changes_nothing_keeps_zeros_and_makes_one_scale_enough(graph):
    model = onnx.load(graph)
    products = products_of(model, ["q", "k", "shared", "relu"])
    assert [product.node for product in products] == ["q", "k"]  # a weight that something else reads stays
    seen = observe(graph, (name for one in products for name in (one.given, one.result)), feeds(), 1)
    together = np.concatenate([feed["x"] for feed in feeds()])
    np.testing.assert_allclose(seen["h"].largest, together.max(0))
    np.testing.assert_allclose(seen["h"].square, np.square(together).mean(0), rtol=1e-4)
    before = results(model)
    scales = smooth(model, products, seen)
    onnx.checker.check_model(model)
    for old, new in zip(before, results(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=2e-4, atol=1e-3)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not weights["q"][::2].any()
    assert [node.op_type for node in model.graph.node].count("Mul") == 1  # q and k share an input
    assert seen["h"].error > LARGEST_ERROR > seen["h"].divided(scales["h"]).error


def test_a_token_that_towers_over_an_output_is_found(graph):
    products = products_of(onnx.load(graph), ["q", "k"])
    calm = Channels(np.full(CHANNELS, 4.0, np.float32), np.ones(CHANNELS, np.float32))
    towering = Channels(np.append(np.full(OUT - 1, 4.0), 4000.0).astype(np.float32), np.ones(OUT, np.float32))
    ones = np.ones(CHANNELS, np.float32)
    seen = {"h": calm, "q_out": towering, "k_out": Channels(np.full(OUT, 4.0, np.float32), np.ones(OUT, np.float32))}
    assert too_rough(products, seen, {"h": ones}) == ["q"]
