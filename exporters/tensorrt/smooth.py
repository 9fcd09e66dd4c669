"""Outliers before int8: moved from activations into weights, and products left alone where one scale cannot hold what they give.

A language model's activations have channels a hundred times larger than the others, and one int8 scale for all rounds the
others to nothing. Dividing a channel by s and multiplying its row of weights by s changes nothing, and moves the outlier to
where every output has a scale of its own (SmoothQuant, Xiao et al. 2022, eq. 4: s = max|x|^α / max|w|^(1−α)). Zeros stay
zeros, so 2:4 stays. Where a few tokens still tower over a product's input or output, that product is not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from exporters.onnx.lowering.outliers import Channels, Floats, Product

ALPHA = 0.5
LARGEST_ERROR = 0.1  # of rounding to int8 steps, relative to the typical channel; a normal distribution has about 0.01
TINY = 1e-5


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
