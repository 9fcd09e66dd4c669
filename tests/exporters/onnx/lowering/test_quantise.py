"""One matrix through ONNX Runtime's quantisers: what the blocks say is what the weights were."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.lowering.quantise import BLOCK, _order_as, quantised_matrix

METHODS = [("k_quant", False), ("default", True)]


def read_back(weight: torch.Tensor, bits: int, method: str, symmetric: bool) -> np.ndarray:
    """The weights that ONNX Runtime computes with: the product with the identity."""
    found = quantised_matrix(weight, bits, method=method, symmetric=symmetric)
    outputs, inputs = weight.shape
    stored = {"q": found.qweight, "s": found.scales} | ({"z": found.qzeros} if found.qzeros is not None else {})
    node = helper.make_node(
        "MatMulNBits", ["x", *stored], ["y"], domain="com.microsoft", bits=bits, block_size=BLOCK, K=inputs, N=outputs, accuracy_level=1
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [inputs, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [inputs, outputs])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0].T


@pytest.mark.parametrize(("method", "symmetric"), METHODS)
@pytest.mark.parametrize("inputs", [32, 64, 96, 160, 72])
@pytest.mark.parametrize(("bits", "most"), [(4, 0.14), (8, 0.01)])
def test_weights_come_back(method: str, symmetric: bool, inputs: int, bits: int, most: float) -> None:
    weight = torch.rand(48, inputs) * 2 - 1
    assert np.abs(read_back(weight, bits, method, symmetric) - weight.numpy()).max() < most


@pytest.mark.parametrize(("method", "symmetric"), METHODS)
def test_a_block_of_zeros_stays_zeros(method: str, symmetric: bool) -> None:
    weight = torch.rand(8, 96) - 0.5
    weight[:, 32:64] = 0
    found = read_back(weight, 4, method, symmetric)
    assert np.isfinite(found).all()
    assert np.abs(found[:, 32:64]).max() == 0


def test_what_the_builder_reads() -> None:
    found = quantised_matrix(torch.rand(10, 96), 4, method="k_quant", symmetric=False)
    assert (found.bits, found.group_size, found.in_features, found.out_features) == (4, BLOCK, 96, 10)
    assert found.qweight.shape == (10, 3, BLOCK // 2)
    assert found.scales.shape == (10, 3)
    assert found.qzeros.shape == (10, 2)
    assert found.bias is None


def test_products_that_a_tool_reordered_stand_in_their_old_order() -> None:
    def graph(order: str) -> onnx.ModelProto:
        weights = [numpy_helper.from_array(np.eye(2, dtype=np.float32), name) for name in ("w1", "w2")]
        nodes = {
            "a": helper.make_node("Relu", ["x"], ["a"]),
            "d": helper.make_node("Identity", ["w2"], ["d"]),  # as a dequantisation, which the old graph lacks
            "1": helper.make_node("MatMul", ["a", "w1"], ["first"]),
            "2": helper.make_node("MatMul", ["a", "d" if "d" in order else "w2"], ["second"]),
            "s": helper.make_node("Add", ["first", "second"], ["y"]),
        }
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
        return helper.make_model(helper.make_graph([nodes[letter] for letter in order], "g", ends[:1], ends[1:], weights))

    found = ir.from_proto(graph("ad21s"))
    _order_as(found.graph, graph("a12s"))
    assert [node.outputs[0].name for node in found.graph] == ["a", "first", "d", "second", "y"]
    onnx.checker.check_model(ir.to_proto(found))
