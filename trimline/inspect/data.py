"""What an inspection finds, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.checkpoints.gguf_file import GgufFile
from trimline.inspect.graph import Graph
from trimline.inspect.openvino_file import OpenvinoGraph

Kind = Literal["checkpoint", "plan", "onnx", "gguf", "openvino"]


@dataclass(frozen=True)
class BlockWidth:
    """Units left in one block, under its number in this folder (a plan's numbers are the dense model's)."""

    number: int
    ffn: int
    kv_groups: int
    experts: int = 0


@dataclass(frozen=True)
class TensorPattern:
    """Share of groups of four of a weight, along the axis that its product sums over, with two zeros or more."""

    name: str
    two_four: float


@dataclass(frozen=True)
class Loading:
    """Whether a program loads the folder's shapes; None where nobody has looked."""

    consumer: str
    loads: bool | None
    why: str
    change: str
    checked: str


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        kind: ``checkpoint``, ``plan``, ``onnx``, ``gguf`` or ``openvino``.
        folder: the folder that was read, which may lie inside the one that was named.
        title: one line for people.
        blocks: widths per block; of a plan, every original block, removed ones with zeros.
        active_parameters: of a mixture, decoder parameters that one token is multiplied with.
        parameters, decoder_parameters: None where the folder alone does not say (a plan, a graph).
        bytes: of the weight files.
        patterns: one per projection.
        consumers: empty where shapes are not known.
        graph: only for ``onnx``.
        gguf: only for ``gguf``.
        openvino: only for ``openvino``.
    """

    kind: Kind
    folder: str
    title: str
    blocks: tuple[BlockWidth, ...] = ()
    parameters: int | None = None
    decoder_parameters: int | None = None
    bytes: int | None = None
    patterns: tuple[TensorPattern, ...] = ()
    consumers: tuple[Loading, ...] = ()
    graph: Graph | None = None
    gguf: GgufFile | None = None
    openvino: OpenvinoGraph | None = None
    notes: tuple[str, ...] = field(default=())
    active_parameters: int | None = None

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)
