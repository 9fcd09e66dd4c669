"""What each precision is in each lowering, and where it cannot run."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from exporters.held import is_mapped, too_large
from exporters.onnx.lowering.last_position import output_product
from exporters.onnx.lowering.quantise import BLOCK
from exporters.recipe import Precision
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions


@dataclass(frozen=True)
class Numbers:
    """One precision.

    Attributes:
        io: of activations and cache.
        weights: what the builder calls the weights' type.
        options: of the builder. Only these spellings count: others that its help names are ignored without a word.
        torch: what the portable lowering loads the checkpoint as.
    """

    io: ir.DataType
    weights: ir.DataType
    options: dict[str, Any] = field(default_factory=dict)
    torch: torch.dtype = torch.float32

    @property
    def quantised(self) -> bool:
        return self.io != self.weights


# int4: k-quants; 8 bits for the output head, and for values and down projections of the blocks that need it most.
NUMBERS: dict[Precision, Numbers] = {
    "fp32": Numbers(ir.DataType.FLOAT, ir.DataType.FLOAT),
    "fp16": Numbers(ir.DataType.FLOAT16, ir.DataType.FLOAT16, torch=torch.float16),
    "bf16": Numbers(ir.DataType.BFLOAT16, ir.DataType.BFLOAT16, torch=torch.bfloat16),
    "int8": Numbers(ir.DataType.FLOAT, ir.DataType.INT8, {"algo_config": "default", "is_symmetric": True}),
    "int4": Numbers(ir.DataType.FLOAT, ir.DataType.UINT4, {"algo_config": "k_quant_mixed", "is_symmetric": False}),
}


def bytes_per_weight(bits: int, *, offsets: bool = True) -> float:
    """What a weight costs to read: below 16 bits in blocks of 32, with an fp32 scale and maybe an offset of a weight's width."""
    return bits / 8 if bits >= 16 else bits / 8 + (4 + offsets * bits / 8) / BLOCK


def bits_by_operator(model: ir.Model, precision: Precision, geometry: Geometry, left: Collection[str] = ()) -> dict[str, int]:
    """Projections whose weights are not of the precision's own width, such as ``{"lm_head": 8, "0.mlp.down_proj": 8}``.

    They are named as the roofline names them: by block and projection, and by the head's own name.

    Args:
        left: of a portable graph, paths of the modules whose products stayed in fp32.
    """
    usual = {"int8": 8, "int4": 4}.get(precision)
    if usual is None:
        return {}
    family = geometry.family
    found = {
        f"{number}.{linear.name}": 32
        for number, block in enumerate(geometry.blocks)
        for linear, _ in geometry.linears(block)
        if family.module(number, linear.name) in left
    } | ({family.head: 32} if family.head in left else {})
    for node in model.graph:
        if node.op_type == "MatMulNBits" and (bits := node.attributes.get_int("bits", 4)) != usual:
            found |= dict.fromkeys(_operators(str(node.name), geometry), bits)
    product = output_product(model)
    if geometry.tied and product is not None and product.op_type == "MatMul":
        found[family.head] = 32  # the portable graph's, which reads the table of the tokens
    return found


def _operators(name: str, geometry: Geometry) -> list[str]:
    """``/model/layers.3/attn/qkv_proj/MatMulNBits``: the query, key and value projections of block 3, packed."""
    place = re.fullmatch(r"/model/layers\.(\d+)/(?:attn|mlp)/(\w+)/\w+", name)
    if place is None:
        return [geometry.family.head]
    block, projection = place.groups()
    linears = [linear.name for linear, _ in geometry.linears(geometry.blocks[int(block)])]
    packed = ("q_proj", "k_proj", "v_proj", "qkv_proj") if projection == "qkv_proj" else (projection,)
    return [f"{block}.{linear}" for linear in linears if linear.split(".")[-1] in packed]


def check_budget(source: Checkpoint, lowering: str, precision: Precision, options: RunOptions) -> None:
    """Whether the weights can be written within the memory.

    Raises:
        TrimlineError: the portable graph would be quantised, for which ONNX Runtime's tools hold all of it.
    """
    if lowering != "portable" or not NUMBERS[precision].quantised or not is_mapped(source, options):
        return
    raise TrimlineError(
        f"ONNX Runtime's tools make the portable graph {precision} with all of its weights in memory: {too_large(source)}.",
        "Use lowering: fused where the family has it, precision: fp32 or fp16, or more --memory.",
    )


def provider_obstacle(precision: Precision, device: str) -> str | None:
    """Why a fused graph in that precision would not run on the device; None where it does, as far as its sources tell."""
    if device == "cuda" and NUMBERS[precision].io == ir.DataType.FLOAT:
        return "ONNX Runtime's CUDA provider has GroupQueryAttention in fp16 and bf16 only"
    return None


def check_precision(precision: Precision, device: str) -> None:
    """Whether what is written could be run, and so gated, here.

    Raises:
        TrimlineError: it could not.
    """
    if precision == "bf16" and device == "cpu":
        raise TrimlineError(
            "bf16 does not run in ONNX Runtime on a processor, which has no bf16 kernel for MatMul.",
            "Use precision: fp16, fp32, int8 or int4, or export with --device cuda.",
        )
