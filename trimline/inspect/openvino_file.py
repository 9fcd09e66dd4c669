"""What an openvino_model.xml holds: inputs, operators, states, and weights by number format, without openvino and without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from pipeline.common.errors import TrimlineError

LARGEST = 256 * 2**20  # bytes of the file of a graph, which holds no weights
BITS = {"boolean": 8, "bf16": 16}  # others say their width in their name


@dataclass(frozen=True)
class OpenvinoGraph:
    """What stands in the file.

    Attributes:
        inputs: name to ``type[axis, axis]``; -1 for an axis of any length.
        states: a state's number format and shape to how many there are.
        operators: by kind, how many.
        weights: number format to (tensors of 1,024 numbers and more, bytes).
        file_bytes: of the graph and its weights.
    """

    inputs: dict[str, str]
    states: dict[str, int]
    operators: dict[str, int]
    weights: dict[str, tuple[int, int]]
    file_bytes: int


def read_openvino(path: Path) -> OpenvinoGraph:
    """Reads the graph; of the weights only sizes.

    Raises:
        TrimlineError: it is no graph of OpenVINO, names entities of XML, or is larger than any.
    """
    inputs: dict[str, str] = {}
    states: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    weights: dict[str, tuple[int, int]] = {}
    for layer in _layers(path):
        kind, data = layer.get("type", "?"), layer.find("data")
        facts = {} if data is None else data.attrib
        operators[kind] += 1
        if kind == "Parameter":
            inputs[layer.get("name", "?")] = f"{facts.get('element_type', '?')}[{facts.get('shape', '').replace(',', ', ')}]"
        elif kind == "ReadValue":
            states[f"{facts.get('variable_type', '?')}[{facts.get('variable_shape', '').replace(',', ', ')}]"] += 1
        elif kind == "Const":
            _add(weights, facts.get("element_type", "?"), facts.get("shape", ""))
    beside = path.with_suffix(".bin")
    size = path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return OpenvinoGraph(inputs, dict(states), dict(operators.most_common()), weights, size)


def _layers(path: Path) -> Iterator[Element]:
    if path.stat().st_size > LARGEST:
        raise TrimlineError(f"{path} is larger than the graph of any model.", "Check the file.")
    parser: Any = XMLPullParser(("start", "end"))
    first = True
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                if b"<!" in piece:  # which OpenVINO never writes, and by which XML can grow without end
                    raise TrimlineError(f"{path} declares entities, which a graph of OpenVINO does not.", "Export it again.")
                parser.feed(piece)
                for event, element in parser.read_events():
                    if first and element.tag != "net":
                        raise TrimlineError(f"{path} is no graph of OpenVINO.", "Export it again.")
                    first = False
                    if event == "end" and element.tag == "layer":
                        yield element
                        element.clear()
        parser.close()
    except ParseError as error:
        raise TrimlineError(f"{path} is no graph of OpenVINO: {error}.", "Export it again.") from None


def _add(weights: dict[str, tuple[int, int]], kind: str, shape: str) -> None:
    axes = [int(axis) for axis in shape.split(",") if axis.strip().isdigit()]
    if math.prod(axes) >= 1024:
        digits = "".join(letter for letter in kind if letter.isdigit())
        bits = BITS.get(kind, int(digits) if digits else 8)
        tensors, size = weights.get(kind, (0, 0))
        weights[kind] = tensors + 1, size + math.prod(axes) * bits // 8
