"""Which product of a graph is which projection of its checkpoint.

Nodes of a fused graph carry the modules' names, and its builder packs projections that transformers has apart, or the other way
round. Nodes of a portable graph stand in the order in which torch called the modules. Either way a wrong match has wrong numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from exporters.onnx.gate.operands import GraphProduct, Operands
from exporters.onnx.gate.rounding import FormatRounding
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError

FUSED_NAME = re.compile(r"/model/layers\.(\d+)/(?:attn|mlp)/(\w+)/\w+")
CALLED = {"dense": "o_proj", "out_proj": "o_proj"}  # what the builder calls projections of other names
PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
Key = tuple[int, str]
HEAD: Key = (-1, "head")


@dataclass(frozen=True)
class Share:
    """What a projection, or a part of it, is in the graph.

    Attributes:
        name: for messages.
        rows: of the module's weight.
        outputs: of the product, as many.
    """

    name: str
    rows: slice
    outputs: slice
    product: GraphProduct
    operands: Operands

    @property
    def rounding(self) -> FormatRounding:
        return self.product.rounding

    def compute(self, given: torch.Tensor) -> torch.Tensor:
        """Inputs (tokens, inputs) to (tokens, outputs), fp32."""
        return self.operands.compute(self.product, given)[:, self.outputs]


class Matching:
    """The products of an exported graph by module.

    Args:
        folder: the export.
        fused: its lowering.
        geometry: of the checkpoint.
        bits: integers of fewer are refused.

    Raises:
        GateError: the graph has products of fewer bits.
    """

    def __init__(self, folder: Path, fused: bool, geometry: Geometry, bits: int) -> None:
        self._operands, self._fused, self._geometry = Operands(folder), fused, geometry
        products = self._operands.products
        for product in products:
            if product.rounding.floats is None and product.rounding.bits < bits:
                few = product.rounding.bits
                raise GateError(f"{folder} has {few} bits a weight at {product.name}, where {bits} were asked for.", "Export it again.")
        self._named = {_key(product): product for product in products} if fused else {}
        self._ordered = list(products)
        self._seen: set[str] = set()

    def shares(self, path: str, shape: tuple[int, int]) -> Iterator[Share]:
        """What a module of weight ``shape`` (outputs, inputs) is in the graph; each module is asked about once, in torch's order.

        Raises:
            GateError: it is not there, or of another size.
        """
        listed = list(self._of_fused(path, shape[0]) if self._fused else self._of_portable(path))
        for share in listed:
            self._seen.add(share.product.name)
            rows, outputs = len(range(*share.rows.indices(shape[0]))), len(range(*share.outputs.indices(share.product.shape[1])))
            if (rows, shape[1]) != (outputs, share.product.shape[0]):
                raise GateError(
                    f"The graph in {self._operands.folder} computes {share.name} with {outputs} outputs of {share.product.shape[0]} inputs, "
                    f"and the checkpoint with {rows} of {shape[1]}.",
                    "Export it again.",
                )
        return iter(listed)

    def unseen(self) -> list[str]:
        """Names of products that no module asked for."""
        return [product.name for product in self._operands.products if product.name not in self._seen]

    def _of_portable(self, path: str) -> Iterator[Share]:
        if not self._ordered:
            raise self._missing(path)
        yield self._share(path, self._ordered.pop(0))

    def _of_fused(self, path: str, rows: int) -> Iterator[Share]:
        place, leaf = self._place(path)
        if (place, leaf) in self._named:
            yield self._share(path, self._named[place, leaf])
        elif leaf in PACKED:  # which the graph has apart
            at = 0
            for part in PACKED[leaf]:
                end = at + self._rows(place, part)
                yield self._share(f"{path} ({part})", self._product(place, part, path), rows=slice(at, end))
                at = end
        else:
            whole = next((name for name, parts in PACKED.items() if leaf in parts), "")
            before = sum(self._rows(place, part) for part in PACKED.get(whole, ())[: PACKED.get(whole, (leaf,)).index(leaf)])
            yield self._share(path, self._product(place, whole, path), outputs=slice(before, before + rows))

    def _share(self, name: str, product: GraphProduct, rows: slice = slice(None), outputs: slice = slice(None)) -> Share:
        return Share(name, rows, outputs, product, self._operands)

    def _place(self, path: str) -> Key:
        family = self._geometry.family
        if path == family.head:
            return HEAD
        number, inside = path.removeprefix(f"{family.blocks}.").split(".", 1)
        leaf = inside.rsplit(".", 1)[-1]
        return int(number), CALLED.get(leaf, leaf)

    def _product(self, place: int, leaf: str, path: str) -> GraphProduct:
        if (place, leaf) not in self._named:
            raise self._missing(path)
        return self._named[place, leaf]

    def _missing(self, path: str) -> GateError:
        return GateError(f"The graph in {self._operands.folder} computes no product for {path}.", "Export it again.")

    def _rows(self, place: int, part: str) -> int:
        shape = self._geometry.blocks[place]
        if part in PACKED["gate_up_proj"]:
            return shape.ffn
        keys = shape.kv_groups * self._geometry.head_dim
        return keys * self._geometry.queries_per_group if part == "q_proj" else keys


def block_of(name: str) -> int:
    """The block that a node of a fused graph is of."""
    return int(name.removeprefix("/model/layers.").split("/", 1)[0])


def _key(product: GraphProduct) -> Key:
    place = FUSED_NAME.fullmatch(product.name)
    return HEAD if place is None else (int(place.group(1)), place.group(2))
