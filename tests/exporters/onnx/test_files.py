"""Weights beyond the two gigabytes that a protobuf holds lie beside the graph, and ONNX Runtime reads them there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.onnx.files import save_graph

ROWS, WIDTH = 70_000, 8192  # 2.3 GB in fp32


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    def table() -> ir.Tensor:
        array = np.zeros((ROWS, WIDTH), np.float32)
        array[-1] = 7
        return ir.Tensor(array, name="table")

    lazy = ir.LazyTensor(table, dtype=ir.DataType.FLOAT, shape=ir.Shape((ROWS, WIDTH)), name="table")
    weights = ir.Value(name="table", const_value=lazy, shape=lazy.shape, type=ir.TensorType(ir.DataType.FLOAT))
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    found = ir.Value(name="rows", shape=ir.Shape(["n", WIDTH]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Gather", [weights, ids], outputs=[found])
    graph = ir.Graph([ids], [found], nodes=[node], initializers=[weights], opset_imports={"": 20}, name="g")
    save_graph(ir.Model(graph, ir_version=10), tmp_path, "portable")
    assert (tmp_path / "model.onnx").stat().st_size < 10_000
    assert (tmp_path / "model.onnx.data").stat().st_size >= 4 * ROWS * WIDTH
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"ids": np.array([0, ROWS - 1])})[0][:, 0].tolist() == [0.0, 7.0]
