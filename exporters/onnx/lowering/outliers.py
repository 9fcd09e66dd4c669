"""What one int8 scale for a whole tensor would round to nothing: activations of a few channels or tokens that tower over all others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from exporters.onnx.files import PAST

STEPS = 127
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Product:
    """A product with a weight: names of its node, its input, its weight and its output."""

    node: str
    given: str
    weight: str
    result: str


@dataclass(frozen=True)
class Channels:
    """What calibration saw of a tensor, per channel (its last axis): the largest size and the mean square."""

    largest: Floats
    square: Floats

    def divided(self, scale: Floats) -> Channels:
        return Channels(self.largest / scale, self.square / scale**2)

    @property
    def error(self) -> float:
        """Root mean square of rounding with one scale for all, over that of the median channel's values."""
        typical = math.sqrt(float(np.median(self.square)))
        return float(self.largest.max()) / STEPS / math.sqrt(12) / max(typical, 1e-12)


def products_of(model: ModelProto, nodes: Sequence[str]) -> list[Product]:
    """The named MatMul nodes whose right-hand side is an initialiser that nothing else reads."""
    named, initialisers = set(nodes), {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return [
        Product(node.name, node.input[0], node.input[1], node.output[0])
        for node in model.graph.node
        if node.name in named and node.op_type == "MatMul" and node.input[1] in initialisers and readers[node.input[1]] == 1
    ]


def observe(graph: Path, tensors: Iterable[str], feeds: Iterable[Mapping[str, Any]], threads: int) -> dict[str, Channels]:
    """Runs the graph on the feeds and looks at these tensors; for that a file is beside ``graph``, and gone afterwards."""
    import onnxruntime

    names = sorted(set(tensors))
    model = onnx.load(graph, load_external_data=False)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in there)
    watched = graph.with_name("watched.onnx")
    onnx.save(model, watched)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(watched), options, providers=["CPUExecutionProvider"])
    watched.unlink()
    largest: dict[str, Any] = {}
    square: dict[str, Any] = {}
    count = 0
    for feed in feeds:
        count += 1
        for name, values in zip(names, session.run(names, dict(feed)), strict=True):
            flat = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
            largest[name] = np.maximum(largest.get(name, 0.0), np.abs(flat).max(0))
            square[name] = square.get(name, 0.0) + np.square(flat).mean(0)
    return {name: Channels(largest[name], square[name] / count) for name in names}


def prompts(model: ModelProto, windows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """What a decoder graph is fed to read each window (N, S) in one call, nothing cached."""
    for ids in windows[:, None]:
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None]}
        yield {value.name: _empty(value) if value.name.startswith(PAST) else known[value.name] for value in model.graph.input}


def _empty(value: onnx.ValueInfoProto) -> Any:
    """A cache (1, heads, 0, width)."""
    _, heads, _, width = (axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return np.zeros((1, heads, 0, width), helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
