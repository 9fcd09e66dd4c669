"""Every projection of a graph against the checkpoint's own: what each is allowed to differ by follows from its number format.

The weight is what OpenVINO itself makes of the stored numbers, scales and zero points, so that the bytes, the way back from them and the
place in the graph are all looked at. Two numbers follow for each weight W and the graph's Ŵ: ``noise``, the error over what rounding to
steps of s should cause (s² / 12 each), and ``scale``, <Ŵ, W> / <W, W> of each output, which is 1 but for what rounding does by chance.
Steps follow from the checkpoint's weights; the graph is asked for the format and the group alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from exporters.openvino.files import MODEL
from exporters.openvino.lowering import INPUTS, LOGITS
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError
from pipeline.evaluate.gates import REPORT
from pipeline.live.untouched import parameter_of

PREFIX, SUFFIX = "__module.model.", "/aten::linear/MatMul"
BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8, "f16": 16, "f32": 32}
LEAST_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
MOST_NOISE = 1.35  # zero points are whole numbers too, and scales 16-bit ones
SIGMAS, SLACK = 8.0, 2e-3
HALF_STEP = 2.0**-11  # of a 16-bit float, relative
TINY = 1e-30


@dataclass
class WeightsRecord:
    """What was found: the worst of each number and where, and how many weights have how many bits."""

    noise: tuple[float, str] = (0.0, "")
    scale: tuple[float, str] = (0.0, "")
    bits: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        worst = {"most noise": self.noise[0], "at": self.noise[1], "furthest scale": self.scale[0], "scale at": self.scale[1]}
        return (
            {"compared": len(self.weights), "bits": {str(bits): count for bits, count in self.bits.items()}}
            | worst
            | {"passed": not self.wrong}
        )


@dataclass(frozen=True)
class Stored:
    """A weight in a graph: its format as openvino names it, inputs that share a scale (0: all of a row), and its value."""

    kind: str
    group: int
    value: torch.Tensor


def compare_weights(model: PreTrainedModel, geometry: Geometry, folder: Path, precision: str) -> WeightsRecord:
    """Compares each projection, the table of tokens and the head with those of the checkpoint in torch.

    Args:
        model: the checkpoint, in fp32.
        geometry: of the checkpoint.
        folder: the export.
        precision: as it was exported.

    Raises:
        GateError: the graph lacks a projection, has one more, or has a weight that rounding does not explain.
    """
    found, graph = WeightsRecord(), _Graph(folder)
    family = geometry.family
    paths = [family.module(n, linear.name) for n, block in enumerate(geometry.blocks) for linear, _ in geometry.linears(block)]
    table, head = _ends(model)
    for path in (*paths, table, head):
        stored = graph.table() if path == table else graph.head() if path == head else graph.projection(path)
        original = parameter_of(model.get_submodule(path), "weight").detach()
        if stored.value.shape != original.shape:
            raise GateError(f"{path} of {folder} has the shape {tuple(stored.value.shape)} instead of {tuple(original.shape)}.", REPORT)
        found.weights[path] = stored.value
        bits = BITS[stored.kind]
        found.bits[bits] = found.bits.get(bits, 0) + 1
        if bits < LEAST_BITS[precision]:
            found.wrong.append(f"{path} (in {bits} bits, and {precision} was asked for)")
        else:
            _judge(found, path, original, stored)
    if left := graph.unseen():
        raise GateError(f"The graph in {folder} has products that the checkpoint does not compute, first {left[0]}.", REPORT)
    return found


def demand_weights(found: WeightsRecord, folder: Path) -> None:
    """Fails where a weight is off.

    Raises:
        GateError: names the projections, the first four of them.
    """
    if found.wrong:
        more = f" and {len(found.wrong) - 4} more" if len(found.wrong) > 4 else ""
        raise GateError(
            f"{folder}: {len(found.wrong)} of {len(found.weights)} weights are off by more than rounding does: {', '.join(found.wrong[:4])}{more}.",
            REPORT,
        )


def put_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Gives a model in torch the graph's own weights, in place: what it computes then is what the graph has to compute, number by number."""
    for path, weight in weights.items():
        model.get_submodule(path).weight = torch.nn.Parameter(weight, requires_grad=False)


def _ends(model: PreTrainedModel) -> tuple[str, str]:
    """The paths of the table of tokens and of the output head, which transformers itself names."""
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())]


class _Graph:
    """A folder's graph, and which of its products hold which weight."""

    def __init__(self, folder: Path) -> None:
        import openvino as ov

        self._ov, self._core = ov, ov.Core()
        self._model = self._core.read_model(str(folder / MODEL))
        self._folder = folder
        nodes = self._model.get_ops()
        products = [node for node in nodes if node.get_type_name() == "MatMul" and _is_constant(node.input_value(1))]
        head = _nearest_product(self._model.output(LOGITS))
        self._head = next((node for node in products if node == head), None)
        self._linears = {_path_of(node): node for node in products if node != head}
        ids = next(node for node in self._model.get_parameters() if INPUTS[0] in node.output(0).get_names())
        self._table = next(
            (node for node in nodes if node.get_type_name() == "Gather" and _is_constant(node.input_value(0)) and _reads(node, ids)), None
        )
        self._count = len(products)
        self._seen = 0

    def projection(self, path: str) -> Stored:
        """The weight of a module of a block, by its place in the trace."""
        return self._weight(self._linears.get(path), 1, path)

    def head(self) -> Stored:
        """The weight that the logits are made with."""
        return self._weight(self._head, 1, "the output head")

    def table(self) -> Stored:
        """The table that token ids pick rows of."""
        return self._weight(self._table, 0, "the table of tokens")

    def _weight(self, node: Any, place: int, name: str) -> Stored:
        if node is None:
            raise GateError(f"The graph in {self._folder} holds no weight of {name}.", REPORT)
        self._seen += place
        return self._stored(node, place)

    def unseen(self) -> list[str]:
        """Products with a weight that nobody asked for."""
        return [] if self._seen == self._count else sorted(self._linears)

    def _stored(self, node: Any, place: int) -> Stored:
        source = node.input_value(place)
        constant = _constant_of(source.get_node())
        size = list(constant.get_output_shape(0))
        kind = constant.get_output_element_type(0).get_type_name()
        result = self._ov.opset13.result(source)
        value = self._core.compile_model(self._ov.Model([result], []), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})([])[0]
        tensor = torch.from_numpy(value.copy()).float()
        if place == 1 and not node.get_attributes().get("transpose_b", True):
            tensor = tensor.T.contiguous()
        return Stored(kind, size[2] if len(size) == 3 else 0, tensor)


def _path_of(node: Any) -> str:
    return str(node.get_friendly_name()).removeprefix(PREFIX).removesuffix(SUFFIX)


def _reads(node: Any, ids: Any) -> bool:
    """Whether the rows that a Gather picks are the token ids."""
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        source = source.input_value(0).get_node()
    return bool(source == ids)


def _nearest_product(output: Any) -> Any:
    node = output.get_node()
    while node.get_type_name() != "MatMul" and node.get_input_size():
        node = node.input_value(0).get_node()
    return node


def _is_constant(source: Any) -> bool:
    """Whether nothing but constants goes into a value: a weight, perhaps with the way back from fewer bits."""
    return all(node.get_type_name() in ("Constant", "Convert", "Subtract", "Multiply", "Reshape") for node in _above(source.get_node()))


def _above(node: Any) -> Iterator[Any]:
    yield node
    for value in node.input_values():
        yield from _above(value.get_node())


def _constant_of(node: Any) -> Any:
    """The stored numbers: the largest constant above a weight."""
    constants = [one for one in _above(node) if one.get_type_name() == "Constant"]
    return max(constants, key=lambda one: math.prod(one.get_output_shape(0)))


def _judge(found: WeightsRecord, path: str, original: torch.Tensor, stored: Stored) -> None:
    error = (stored.value - original).double()
    if stored.kind == "f32":
        if not torch.equal(stored.value, original):
            found.wrong.append(f"{path} (off by {error.abs().max().item():.3g}, in 32 bits)")
        return
    variance = _variance(original, stored).double()
    exact = original.double()
    noise = math.sqrt(error.square().sum().item() / max(variance.sum().item(), TINY))
    energy = exact.square().sum(1)
    scales = (stored.value.double() * exact).sum(1) / energy.clamp_min(TINY)
    allowed = SLACK + (SIGMAS * (variance * exact.square()).sum(1).sqrt() + variance.sum(1)) / energy.clamp_min(TINY)
    beyond = ((scales - 1).abs() > allowed) & (energy > 1e-6 * energy.mean())
    found.noise = max(found.noise, (noise, path))
    found.scale = max(found.scale, ((scales - 1).abs()[energy > 1e-6 * energy.mean()].max().item(), path))
    if beyond.any():
        row = int(beyond.nonzero()[0])
        found.wrong.append(f"{path} (output {row} scaled by {scales[row].item():.3f})")
    elif not noise <= MOST_NOISE:
        found.wrong.append(f"{path} ({noise:.3g} times the error that rounding makes)")


def _variance(weight: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Of the error of each number of a weight (outputs, inputs)."""
    scales = (HALF_STEP * weight).square() / 3  # a 16-bit number, be it the weight or its scale, is off by up to half of its last place
    if stored.kind == "f16":
        return scales + 2.0**-52
    groups = weight.unflatten(1, (-1, stored.group)) if stored.group else weight[:, None]
    if stored.kind.startswith("u"):
        span = groups.amax(-1, keepdim=True).clamp_min(0) - groups.amin(-1, keepdim=True).clamp_max(0)
    else:
        span = 2 * groups.abs().amax(-1, keepdim=True)
    steps = (span / (2 ** BITS[stored.kind] - 1)).expand_as(groups).reshape(weight.shape)
    return steps.square() / 12 + scales
