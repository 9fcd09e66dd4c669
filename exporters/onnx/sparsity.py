"""2:4 in an ONNX file: of every weight that a product reads, the share of groups of four with two zeros or more.

Groups lie along the axis that the product sums over, as the runtime reads it. Between the weight and the product may stand
transpositions, casts and (de)quantisers: each is applied to the pattern of zeros, so that what is counted is the operand
itself. An int8 weight is zero where it equals its zero point; a weight of MatMulNBits is unpacked first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from exporters.onnx.lowering.nbits import unpacked_zeros
from pipeline.architecture.sparsity import GROUP, two_four_fraction
from pipeline.common.errors import TrimlineError, shortened

Mask = NDArray[np.bool_]
HEAD_WALK = 8  # operators between the last product and the logits, at most
# Operator to (place of the right operand, place of its zero point), for those that hold quantised weights themselves.
INTEGER_PRODUCTS = {"MatMulInteger": (1, 3), "QLinearMatMul": (3, 5), "DynamicQuantizeMatMul": (1, 3)}
FLOAT_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul"}


@dataclass(frozen=True)
class WeightPattern:
    """One weight as one product reads it: an initialiser of a graph, or a tensor of a checkpoint.

    Attributes:
        name: of the initialiser or tensor.
        operator: that reads it; ``Linear`` of a checkpoint.
        node: its name; a checkpoint's module.
        axis: of the initialiser, that is summed over; None where a reshape or packing leaves no such axis.
        shape: of the initialiser.
        two_four: share of groups of four, along that axis, with at least two zeros; 0 where its length is no multiple of four.
        zeros: share of zeros.
        head: it makes the logits, and no step of a recipe prunes it.
    """

    name: str
    operator: str
    node: str
    axis: int | None
    shape: tuple[int, ...]
    two_four: float
    zeros: float
    head: bool = False

    @property
    def complies(self) -> bool:
        return self.two_four == 1.0

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self) | {"complies": self.complies}


@dataclass(frozen=True)
class Zeros:
    """Where an operand is zero.

    Attributes:
        mask: True for zero, in the operand's shape.
        name, shape: of the initialiser that it comes from.
        axes: the initialiser's axis behind each axis of the mask; None after a reshape.
    """

    mask: Mask
    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None


def weight_patterns(graph: Path) -> Iterator[WeightPattern]:
    """Every weight of the main graph's products, one at a time; one that is read along two axes comes twice.

    Products of two computed values are left out, and so are operands with fewer than four values along the summed axis.

    Raises:
        TrimlineError: the file is not ONNX, or a data file that it names is missing or too short.
    """
    model = load_graph(graph)
    reader = _Reader(model, graph.parent)
    heads, seen = _head_nodes(model), set()
    for node in model.graph.node:
        for operand, axis in _operands(node, reader):
            key = (operand.name, operand.axes[axis] if operand.axes else axis)
            if operand.mask.shape[axis] < GROUP or key in seen:
                continue
            seen.add(key)
            yield WeightPattern(
                name=operand.name,
                operator=node.op_type,
                node=node.name,
                axis=operand.axes[axis] if operand.axes else None,
                shape=operand.shape,
                two_four=two_four_fraction(torch.from_numpy(~operand.mask), axis),
                zeros=float(operand.mask.mean()) if operand.mask.size else 0.0,
                head=node.name in heads and bool(node.name),
            )


def check_two_four(patterns: Sequence[WeightPattern]) -> dict[str, Any]:
    """The verdict on a graph: it complies when every weight does but the one that makes the logits.

    Returns:
        ``complies``, how many ``weights`` were judged and how many are ``two_four``, and the names of the others.
    """
    judged = [pattern for pattern in patterns if not pattern.head]
    others = [pattern.name for pattern in judged if not pattern.complies]
    return {
        "complies": bool(judged) and not others,
        "weights": len(judged),
        "two_four": len(judged) - len(others),
        "others": others,
        "head": [{"name": pattern.name, "two_four": pattern.complies} for pattern in patterns if pattern.head],
    }


def load_values(tensor: TensorProto, folder: Path) -> None:
    """Reads a tensor's values out of the file beside its graph.

    Raises:
        TrimlineError: that file is missing, too short, or one that onnx does not read, such as one with several hard links.
    """
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except Exception as error:  # onnx's own kinds, and those of the system
        why = shortened(" ".join(str(error).split()), 200)
        raise TrimlineError(
            f"The values of {tensor.name} in {folder} cannot be read ({why}).", "Copy the folder with cp -rL, or export it again."
        ) from None


def load_graph(path: Path) -> ModelProto:
    """An ONNX file without its external data.

    Raises:
        TrimlineError: it is none.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's own error classes differ between its implementations
        raise TrimlineError(f"{path} is not a readable ONNX file ({error}).", "Export it again.") from None
    if not model.graph.node:
        raise TrimlineError(f"{path} holds no graph.", "Export it again.")
    if not all(isinstance(name, str) for name in _names(model)):  # what protobuf makes of bytes that are not UTF-8
        raise TrimlineError(f"{path} names something in bytes that are no text.", "Export it again.")
    return model


def _names(model: ModelProto) -> Iterator[str]:
    graph = model.graph
    for node in graph.node:
        yield from (node.name, node.domain, node.op_type, *node.input, *node.output)
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name
    for value in (*graph.input, *graph.output):
        yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
    yield from (entry.domain for entry in model.opset_import)


class _Reader:
    """Patterns of zeros of constant values, computed through what stands between a weight and its product."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self._folder = folder
        self._weights: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}

    def values(self, name: str) -> NDArray[Any] | None:
        """A constant's values; None for what is computed."""
        if name in self._weights:
            return self._read(self._weights[name])
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            return next((numpy_helper.to_array(a.t) for a in maker.attribute if a.name == "value"), None)
        return None

    def zeros(self, name: str) -> Zeros | None:
        """Where a constant operand is zero; None for what is computed."""
        if (values := self.values(name)) is not None:
            return Zeros(_is_zero(values), name, values.shape, tuple(range(values.ndim)))
        maker = self._makers.get(name)
        if maker is None or not maker.input:
            return None
        if maker.op_type in {"Identity", "Cast"}:
            return self.zeros(maker.input[0])
        if maker.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            return self._through_quantiser(maker)
        if maker.op_type == "Transpose":
            return self._through_transpose(maker)
        return self._through_reshape(maker) if maker.op_type == "Reshape" else None

    def _through_transpose(self, node: NodeProto) -> Zeros | None:
        found = self.zeros(node.input[0])
        if found is None:
            return None
        order = attribute(node, "perm", list(range(found.mask.ndim))[::-1])
        axes = None if found.axes is None else tuple(found.axes[axis] for axis in order)
        return Zeros(found.mask.transpose(order), found.name, found.shape, axes)

    def _through_reshape(self, node: NodeProto) -> Zeros | None:
        found, shape = self.zeros(node.input[0]), self.values(node.input[1])
        if found is None or shape is None:
            return None
        sizes = [found.mask.shape[place] if size == 0 else int(size) for place, size in enumerate(shape)]
        return Zeros(found.mask.reshape(sizes), found.name, found.shape, None)

    def _through_quantiser(self, node: NodeProto) -> Zeros | None:
        """A quantised value is zero where it is its zero point, and rounding makes more of them than there were."""
        values = self.values(node.input[0])
        if values is None:
            return self._behind_quantiser(node)
        axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
        shape = values.shape
        scale = _spread(self.values(node.input[1]), shape, axis, block)
        if scale is None:
            return None
        if node.op_type == "QuantizeLinear":
            mask = np.rint(values.astype(np.float32) / scale.astype(np.float32)) == 0
        else:
            point = _spread(self.values(node.input[2]), shape, axis, block) if len(node.input) > 2 and node.input[2] else 0
            mask = (values.astype(np.float32) == np.asarray(point, np.float32)) | (scale == 0)
        return Zeros(np.asarray(mask), node.input[0], shape, tuple(range(values.ndim)))

    def _behind_quantiser(self, node: NodeProto) -> Zeros | None:
        """A dequantiser behind a quantiser of a weight, or behind a transposed weight whose zero point is 0."""
        maker = self._makers.get(node.input[0])
        if node.op_type != "DequantizeLinear" or maker is None:
            return None
        point = self.values(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        plain = point is None or not point.astype(np.float32).any()
        return self.zeros(node.input[0]) if maker.op_type == "QuantizeLinear" or plain else None

    def integer(self, node: NodeProto) -> Zeros | None:
        """The right operand of an integer product, against its own zero point (one, or one per column)."""
        place, point_place = INTEGER_PRODUCTS[node.op_type]
        values = self.values(node.input[place])
        if values is None:
            return None
        point = self.values(node.input[point_place]) if len(node.input) > point_place and node.input[point_place] else None
        zero = 0 if point is None else point.astype(np.int32)
        return Zeros(values.astype(np.int32) == zero, node.input[place], values.shape, tuple(range(values.ndim)))

    def packed(self, node: NodeProto) -> Zeros | None:
        """MatMulNBits: (outputs, inputs), whatever the packing."""
        values, scales = self.values(node.input[1]), self.values(node.input[2])
        if values is None or scales is None:
            return None
        points = self.values(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        sizes = {name: attribute(node, name, default) for name, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 32))}
        return Zeros(unpacked_zeros(values, scales, points, **sizes), node.input[1], values.shape, None)

    def _read(self, tensor: TensorProto) -> NDArray[Any]:
        filled = TensorProto()
        filled.CopyFrom(tensor)
        try:
            if external_data_helper.uses_external_data(filled):
                load_values(filled, self._folder)
            return numpy_helper.to_array(filled)
        except Exception as error:  # noqa: BLE001 - onnx raises ValueError, OSError and its own checker's errors here
            raise TrimlineError(
                f"The weight {tensor.name} cannot be read from {self._folder} ({error}).", "Export it again, or copy it without links."
            ) from None


def _operands(node: NodeProto, reader: _Reader) -> Iterator[tuple[Zeros, int]]:
    """Constant operands of a product, each with the axis of the operand that is summed over."""
    if node.op_type in FLOAT_PRODUCTS:
        flips = attribute(node, "transA", 0), attribute(node, "transB", 0)
        for name, axis in zip(node.input[:2], (-2 if flips[0] else -1, -1 if flips[1] else -2), strict=True):
            found = reader.zeros(name)
            if found is not None and found.mask.ndim >= 2:
                yield found, axis % found.mask.ndim
    elif node.op_type in INTEGER_PRODUCTS:
        found = reader.integer(node)
        if found is not None and found.mask.ndim >= 2:
            yield found, found.mask.ndim - 2
    elif node.op_type == "MatMulNBits":
        found = reader.packed(node)
        if found is not None:
            yield found, 1


def _head_nodes(model: ModelProto) -> set[str]:
    """Names of the products that the logits come from, through operators with one computed input."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get("logits")
    for _ in range(HEAD_WALK):
        if node is None:
            return set()
        if node.op_type in FLOAT_PRODUCTS or node.op_type in INTEGER_PRODUCTS or node.op_type == "MatMulNBits":
            return {node.name}
        node = next((makers[name] for name in node.input if name in makers), None)
    return set()


def _is_zero(values: NDArray[Any]) -> Mask:
    # numpy's own comparison works on every type that onnx knows, bf16, fp8 and int4 among them.
    return np.asarray(values == np.zeros((), values.dtype))


def _spread(values: NDArray[Any] | None, shape: Sequence[int], axis: int, block: int) -> NDArray[Any] | None:
    """A scale or zero point in the shape of what it belongs to: one for all, one per index of an axis, or one per block of it."""
    if values is None:
        return None
    if block:
        return np.repeat(values, block, axis=axis).take(range(shape[axis]), axis=axis)
    if values.ndim == 1 and values.size > 1:
        return values.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    return values


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """A node's attribute, or what the operator takes without it."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)
