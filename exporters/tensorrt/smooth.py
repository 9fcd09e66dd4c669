"""Outliers before int8: moved from activations into weights, and products left alone where one scale cannot hold what they give.

A language model's activations have channels a hundred times larger than the others, and one int8 scale for all rounds the
others to nothing. Dividing a channel by s and multiplying its row of weights by s changes nothing, and moves the outlier to
where every output has a scale of its own (SmoothQuant, Xiao et al. 2022, eq. 4: s = max|x|^α / max|w|^(1−α)). Zeros stay
zeros, so 2:4 stays. Where a few tokens still tower over a product's input or output, that product is not quantised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

ALPHA = 0.5
LARGEST_ERROR = 0.1  # of rounding to int8 steps, relative to the typical channel; a normal distribution has about 0.01
STEPS = 127
TINY = 1e-5
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
    initialisers = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return [
        Product(node.name, node.input[0], node.input[1], node.output[0])
        for node in model.graph.node
        if node.name in set(nodes) and node.op_type == "MatMul" and node.input[1] in initialisers and readers[node.input[1]] == 1
    ]


def observe(graph: Path, products: Sequence[Product], feeds: Iterable[Mapping[str, Any]], threads: int) -> dict[str, Channels]:
    """Runs the graph on the feeds and looks at every product's input and output; writes a file beside ``graph``."""
    import onnxruntime

    names = sorted({name for product in products for name in (product.given, product.result)})
    model = onnx.load(graph, load_external_data=False)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in there)
    watched = graph.with_name("watched.onnx")
    onnx.save(model, watched)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(watched), options, providers=["CPUExecutionProvider"])
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


def smooth(model: ModelProto, products: Sequence[Product], seen: Mapping[str, Channels]) -> dict[str, Floats]:
    """Moves outliers of every product's input into its weights, in place; returns each input's divisors by name.

    Args:
        model: with its weights in memory.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    together: dict[str, list[Product]] = {}
    for product in products:
        together.setdefault(product.given, []).append(product)
    scales = {}
    for given, readers in together.items():
        values = {reader.weight: numpy_helper.to_array(weights[reader.weight]) for reader in readers}
        rows = np.max([np.abs(value.astype(np.float32)).max(1) for value in values.values()], axis=0)
        scale = np.maximum(seen[given].largest, TINY) ** ALPHA / np.maximum(rows, TINY) ** (1 - ALPHA)
        scale = np.maximum(scale, TINY).astype(np.float32)
        for name, value in values.items():
            weights[name].CopyFrom(numpy_helper.from_array((value.astype(np.float32) * scale[:, None]).astype(value.dtype), name))
        factor = f"{given}_smoothing"
        kind = next(iter(values.values())).dtype
        model.graph.initializer.append(numpy_helper.from_array((1 / scale).astype(kind), factor))
        first = min(list(model.graph.node).index(nodes[reader.node]) for reader in readers)
        model.graph.node.insert(first, helper.make_node("Mul", [given, factor], [f"{given}_smoothed"], name=f"{given}_smooth"))
        nodes = {node.name: node for node in model.graph.node}
        for reader in readers:
            nodes[reader.node].input[0] = f"{given}_smoothed"
        scales[given] = scale
    return scales


def too_rough(products: Sequence[Product], seen: Mapping[str, Channels], scales: Mapping[str, Floats]) -> list[str]:
    """Nodes whose smoothed input, or whose output, one int8 scale would round to nothing."""
    return [
        product.node
        for product in products
        if max(seen[product.given].divided(scales[product.given]).error, seen[product.result].error) > LARGEST_ERROR
    ]
