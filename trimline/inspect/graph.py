"""What an ONNX file holds: opset, operators, inputs and outputs, bytes, and 2:4 patterns, without running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, TensorProto

from exporters.onnx.sparsity import load_graph, weight_patterns

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
    model = load_graph(path)
    files = {path.name} | {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return Graph(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", STANDARD)), 0),
        nodes=len(model.graph.node),
        inputs={value.name: _type(value) for value in model.graph.input},
        outputs={value.name: _type(value) for value in model.graph.output},
        initialiser_bytes=sum(_bytes(tensor) for tensor in model.graph.initializer),
        file_bytes=sum((path.parent / name).stat().st_size for name in files if (path.parent / name).exists()),
        operators=_operators(model),
        two_four=_patterns(path),
    )


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


def _patterns(path: Path) -> dict[str, float]:
    """Of a weight that is read along two axes, the smaller share."""
    found: dict[str, float] = {}
    for pattern in weight_patterns(path):
        found[pattern.name] = min(pattern.two_four, found.get(pattern.name, 1.0))
    return found
