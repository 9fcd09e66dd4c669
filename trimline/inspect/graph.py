"""What an ONNX file holds: opset, operators, inputs and outputs, bytes, and 2:4 patterns, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, numpy_helper

from pipeline.errors import TrimlineError
from pipeline.sparsity import two_four_fraction

STANDARD = "ai.onnx"


@dataclass(frozen=True)
class Graph:
    """What stands in an ONNX file.

    Attributes:
        opset: of the standard operators.
        nodes: of the main graph.
        inputs, outputs: name to ``type[axis, axis]``.
        initialiser_bytes: of all weights, wherever they lie.
        file_bytes: of the graph file and the data files that it names.
        operators: domain to operator to how often it stands there.
        two_four: weight of a matrix product to its share of 2:4 groups along the axis that is summed over.
    """

    opset: int
    nodes: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    initialiser_bytes: int
    file_bytes: int
    operators: dict[str, dict[str, int]]
    two_four: dict[str, float]


def inspect_graph(path: Path) -> Graph:
    """Reads one ONNX file; weights are looked at one at a time.

    Raises:
        TrimlineError: it is not an ONNX file, or a data file that it names is missing or too short.
    """
    model = _load(path)
    files = {path.name} | {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return Graph(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", STANDARD)), 0),
        nodes=len(model.graph.node),
        inputs={value.name: _type(value) for value in model.graph.input},
        outputs={value.name: _type(value) for value in model.graph.output},
        initialiser_bytes=sum(_bytes(tensor) for tensor in model.graph.initializer),
        file_bytes=sum((path.parent / name).stat().st_size for name in files if (path.parent / name).exists()),
        operators=_operators(model),
        two_four=dict(_patterns(model, path.parent)),
    )


def _load(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's own error classes differ between its implementations
        raise TrimlineError(f"{path} is not a readable ONNX file ({error}).", "Export it again.") from None
    if not model.graph.node:
        raise TrimlineError(f"{path} holds no graph.", "Export it again.")
    return model


def _type(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    axes = ", ".join(axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim)
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()}[{axes}]"


def _bytes(tensor: TensorProto) -> int:
    return len(tensor.raw_data) or -(-_count(tensor) * _bits(tensor) // 8)


def _count(tensor: TensorProto) -> int:
    return int(torch.Size(tensor.dims).numel())


def _bits(tensor: TensorProto) -> int:
    four_bits = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
    return 4 if tensor.data_type in four_bits else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _operators(model: ModelProto) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        counted.setdefault(node.domain or STANDARD, Counter())[node.op_type] += 1
    return {domain: dict(sorted(counts.items())) for domain, counts in sorted(counted.items())}


def _patterns(model: ModelProto, folder: Path) -> Iterator[tuple[str, float]]:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        axis = _summed_axis(node)
        if axis is None or len(node.input) < 2:
            continue
        tensor = weights.get(node.input[1])
        if tensor is None or len(tensor.dims) < 2 or tensor.name in seen:
            continue
        seen.add(tensor.name)
        yield tensor.name, two_four_fraction(_values(tensor, folder), axis)


def _summed_axis(node: NodeProto) -> int | None:
    """The axis of a product's right-hand side that is summed over; None for every other operator."""
    if node.op_type == "MatMul":
        return -2
    if node.op_type in {"Gemm", "FusedMatMul"}:
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        return -1 if flags.get("transB") else -2
    return None


def _values(tensor: TensorProto, folder: Path) -> torch.Tensor:
    filled = TensorProto()
    filled.CopyFrom(tensor)
    try:
        if external_data_helper.uses_external_data(filled):
            external_data_helper.load_external_data_for_tensor(filled, str(folder))
        values = numpy_helper.to_array(filled)
    except Exception as error:  # noqa: BLE001 - onnx raises ValueError, OSError and its own checker's errors here
        raise TrimlineError(
            f"The weight {tensor.name} cannot be read from {folder} ({error}).", "Export it again, or copy it without links."
        ) from None
    # Only zeros matter, and torch has no view of every ONNX type.
    return torch.from_numpy(values != 0)
