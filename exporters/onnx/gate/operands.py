"""The products with weights in a graph, as ONNX has them: each is found by what it is made of, and computed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from exporters.onnx.files import GRAPH
from exporters.onnx.gate.rounding import FormatRounding
from exporters.onnx.sparsity import load_graph, load_values
from pipeline.common.errors import GateError

PLAIN = ("MatMul", "FusedMatMul", "Gemm")
KERNEL_BLOCK = 32  # inputs that ONNX Runtime's 4- and 8-bit kernels round to 8 bits by one scale
TO_8_BITS = 4  # of MatMulNBits' accuracy levels: inputs may be rounded to 8 bits


@dataclass(frozen=True)
class GraphProduct:
    """One product.

    Attributes:
        name: of its node.
        nodes: that make ``result`` of ``given`` and of initialisers, in order.
        shape: (inputs, outputs).
        weight: the initialiser of plain weights; empty where they are integers.
        transposed: plain weights are stored as (outputs, inputs).
    """

    name: str
    nodes: tuple[NodeProto, ...]
    given: str
    result: str
    shape: tuple[int, int]
    rounding: FormatRounding
    weight: str = ""
    transposed: bool = False


class Operands:
    """An exported graph's products.

    Args:
        folder: with model.onnx and its weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._model = folder, load_graph(folder / GRAPH)
        self._held = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._makers = {name: node for node in self._model.graph.node for name in node.output if name}

    @cached_property
    def products(self) -> tuple[GraphProduct, ...]:
        """In the graph's order.

        Raises:
            GateError: one is in a form that no lowering writes.
        """
        return tuple(found for node in self._model.graph.node if (found := self._product(node)) is not None)

    def compute(self, product: GraphProduct, given: torch.Tensor) -> torch.Tensor:
        """What the graph's own nodes make of inputs (tokens, inputs), fp32: (tokens, outputs).

        Plain weights are multiplied in fp32, so that a format is judged and not the order of a kernel's sums; integers go through
        ONNX Runtime, whose kernels decide what they stand for.
        """
        if product.weight:
            weight = torch.from_numpy(np.array(numpy_helper.to_array(self._loaded(product.weight)), np.float32))
            return given @ (weight.T if product.transposed else weight)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(self._alone(product).SerializeToString(), options, providers=["CPUExecutionProvider"])
        (found,) = session.run([product.result], {product.given: given.numpy()})
        return torch.from_numpy(np.asarray(found, np.float32))

    def _product(self, node: NodeProto) -> GraphProduct | None:
        if node.op_type == "MatMulNBits":
            return self._in_blocks(node)
        if node.op_type == "MatMulInteger":
            return self._dynamic(node)
        return self._plain(node) if node.op_type in PLAIN else None

    def _plain(self, node: NodeProto) -> GraphProduct | None:
        """A product whose right side is an initialiser, or what one dequantisation makes of initialisers."""
        right, swapped = node.input[1], bool(_attribute(node, "transB", 0))
        maker = self._makers.get(right)
        if right in self._held:
            tensor = self._held[right]
            sizes = tuple(tensor.dims)[::-1] if swapped else tuple(tensor.dims)
            return GraphProduct(
                node.name, (node,), node.input[0], node.output[0], _two(sizes), FormatRounding(tensor.data_type), right, swapped
            )
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in self._held:
            return None
        tensor = self._held[maker.input[0]]
        bits = 4 if tensor.data_type in (TensorProto.UINT4, TensorProto.INT4) else 8
        rounding = FormatRounding(bits=bits, block=_attribute(maker, "block_size", 0), offset=len(maker.input) > 2, inputs=KERNEL_BLOCK)
        return GraphProduct(node.name, (maker, node), node.input[0], node.output[0], _two(tuple(tensor.dims)), rounding)

    def _in_blocks(self, node: NodeProto) -> GraphProduct:
        rounded = KERNEL_BLOCK if _attribute(node, "accuracy_level", 0) == TO_8_BITS else None
        offset = len(node.input) > 3 and bool(node.input[3])
        rounding = FormatRounding(bits=_attribute(node, "bits", 4), block=_attribute(node, "block_size", 32), offset=offset, inputs=rounded)
        return GraphProduct(
            node.name, (node,), node.input[0], node.output[0], (_attribute(node, "K", 0), _attribute(node, "N", 0)), rounding
        )

    def _dynamic(self, node: NodeProto) -> GraphProduct:
        """Inputs rounded by one scale per call, integers multiplied, and the result brought back by both scales."""
        rounded, result = self._makers.get(node.input[0]), node
        while result.op_type != "Mul":
            following = [reader for reader in self._model.graph.node if result.output[0] in reader.input]
            if len(following) != 1:
                raise GateError(f"{self.folder / GRAPH} has a product {node.name} that nothing brings back to floats.", "Export it again.")
            result = following[0]
        if rounded is None or rounded.op_type != "DynamicQuantizeLinear":
            raise GateError(f"{self.folder / GRAPH} has a product {node.name} of inputs that nothing rounds.", "Export it again.")
        given, shape = rounded.input[0], _two(tuple(self._held[node.input[1]].dims))
        nodes = tuple(self._between(result.output[0], given))
        return GraphProduct(node.name, nodes, given, result.output[0], shape, FormatRounding(bits=8, inputs=0))

    def _between(self, result: str, given: str) -> Iterator[NodeProto]:
        """The nodes that make ``result`` of ``given`` and of initialisers, in the graph's order."""
        wanted, found = [result], set[str]()
        while wanted:
            name = wanted.pop()
            if name and name != given and name not in self._held and name not in found:
                found.update(self._makers[name].output)
                wanted += self._makers[name].input
        return (node for node in self._model.graph.node if found & set(node.output))

    def _alone(self, product: GraphProduct) -> ModelProto:
        """A model of these nodes only, with their weights."""
        inside = {name for node in product.nodes for name in node.output}
        names = dict.fromkeys(
            name for node in product.nodes for name in node.input if name and name not in inside and name != product.given
        )
        graph = helper.make_graph(
            list(product.nodes),
            "product",
            [helper.make_tensor_value_info(product.given, TensorProto.FLOAT, ["tokens", product.shape[0]])],
            [helper.make_tensor_value_info(product.result, TensorProto.FLOAT, ["tokens", product.shape[1]])],
            [self._loaded(name) for name in names],
        )
        return helper.make_model(graph, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version)

    def _loaded(self, name: str) -> TensorProto:
        """A copy of an initialiser with its numbers, wherever they lie."""
        tensor = TensorProto()
        tensor.CopyFrom(self._held[name])
        if uses_external_data(tensor):
            load_values(tensor, self.folder)
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
        return tensor


def _attribute(node: NodeProto, name: str, otherwise: int) -> Any:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), otherwise)


def _two(sizes: tuple[int, ...]) -> tuple[int, int]:
    inputs, outputs = sizes
    return inputs, outputs
