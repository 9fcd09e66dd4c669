"""Weights in 8 and 4 bits, by ONNX Runtime's own quantisers.

The fused lowering is quantised one matrix at a time, so that neither memory nor protobuf's two gigabytes limit the
model: each projection goes through ``MatMulNBitsQuantizer`` in a graph of its own. The portable graph goes through the
same tools as a whole, and keeps to standard operators.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.outliers import observe, products_of, prompts
from pipeline.errors import TrimlineError

BLOCK = 32  # inputs that share one scale: what the builder takes on a processor
SLICE = 2**22  # weights that go through a tool at once: it holds some ten times as many numbers meanwhile
WHOLE = "whole.onnx"
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: paths from the whole model to the operator itself
LARGEST_ERROR = 0.15  # of rounding a product's input, relative to the typical channel


def quantised_matrix(weight: torch.Tensor, bits: int, *, method: str, symmetric: bool) -> SimpleNamespace:
    """A projection's weights, (outputs, inputs), in blocks of 32 inputs.

    Args:
        bits: 4 or 8.
        method: ``k_quant`` (scale and offset of least weighted squared error, as llama.cpp) or ``default``.
        symmetric: no offsets (``default`` only; ``k_quant`` always has some).

    Returns:
        What the builder takes for a projection that is quantised already: ``qweight`` (outputs, blocks, bytes), ``scales``
        (outputs, blocks) and ``qzeros`` (outputs, bytes), ``bits``, ``group_size``, ``in_features``, ``out_features``.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // BLOCK)
    rows = max(1, SLICE // inputs)
    pieces = [_quantised_rows(weight[at : at + rows], bits, method, symmetric) for at in range(0, outputs, rows)]
    values, scales, *offsets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return SimpleNamespace(
        qweight=values[:, :blocks].contiguous(),
        scales=scales[:, :blocks].contiguous(),
        qzeros=offsets[0][:, : -(-blocks * bits // 8)].contiguous() if offsets else None,
        bits=bits,
        group_size=BLOCK,
        in_features=inputs,
        out_features=outputs,
        bias=None,
    )


def _quantised_rows(weight: torch.Tensor, bits: int, method: str, symmetric: bool) -> list[torch.Tensor]:
    """Values (rows, blocks, bytes), scales (rows, blocks) and, where there are some, offsets (rows, bytes); blocks are even in number."""
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    rows, inputs = weight.shape
    # The k-quant tool packs two offsets into a byte without minding where a row ends: give every row an even number.
    weight = torch.nn.functional.pad(weight.detach().float(), (0, -inputs % (2 * BLOCK)))
    algorithm = tool.KQuantWeightOnlyQuantConfig(customized_weight_config={"m": {"bits": bits}}) if method == "k_quant" else None
    quantizer = tool.MatMulNBitsQuantizer(_product(weight), bits=bits, block_size=BLOCK, is_symmetric=symmetric, algo_config=algorithm)
    with _silenced():
        quantizer.process()
    graph = quantizer.model.model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values, *others = (torch.from_numpy(stored[name].copy()) for name in graph.node[0].input[1:] if name)
    return [values, *(other.view(rows, -1) for other in others)]


def quantised_graph(
    model: ir.Model, precision: str, folder: Path, windows: torch.Tensor | None = None, threads: int = 1
) -> tuple[ir.Model, list[str]]:
    """A portable graph with the projections' weights in ``int8`` or ``int4``, of standard operators still.

    ``int8``: weights per output channel, activations per tensor and call (DynamicQuantizeLinear, MatMulInteger). A product stays as it
    is where that one scale would have to span activations that tower over all others. ``int4``: weights in blocks of 32, offsets
    included (DequantizeLinear), which runtimes fuse into the product. A tied output head reads the embedding table, which stays as it is.

    Args:
        folder: where the graph passes through files; they are gone afterwards, and the result is in memory.
        windows: tokens (N, S) on which activations are looked at; without them every product becomes int8.
        threads: of looking.

    Returns:
        The graph, and the paths of the modules whose products stayed as they are, such as ``model.layers.1.mlp.down_proj``.

    Raises:
        TrimlineError: one int8 scale holds the activations of no product.
    """
    source, target = folder / WHOLE, folder / f"quantised-{WHOLE}"
    ir.save(model, source, external_data=f"{WHOLE}.data")
    _forget_shapes(source)
    try:
        left: list[str] = []
        with _silenced():
            if precision == "int8":
                left = _dynamic(source, target, windows, threads)
            else:
                _in_blocks(source, target)
        found = ir.load(target)
        ir.external_data.load_to_model(found)
    finally:
        for path in folder.glob(f"*{WHOLE}*"):
            path.unlink()
    return found, left


def _forget_shapes(graph: Path) -> None:
    """The tool for int8 turns weights round, and then trips over the shapes that they are said to have."""
    model = onnx.load(graph, load_external_data=False)
    del model.graph.value_info[:]
    graph.write_bytes(model.SerializeToString())


def _dynamic(source: Path, target: Path, windows: torch.Tensor | None, threads: int) -> list[str]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source, load_external_data=False)
    products = products_of(model, [node.name for node in model.graph.node])
    left: list[str] = []
    if windows is not None:
        seen = observe(source, (product.given for product in products), prompts(model, windows.numpy()), threads)
        left = [product.node for product in products if seen[product.given].error > LARGEST_ERROR]
    if len(left) == len(products):
        raise TrimlineError("One int8 scale holds the activations of no product of this model.", "Use lowering: fused, or precision: int4.")
    # uint8 weights: processors without VNNI saturate the sums of products of uint8 with int8.
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QUInt8,
        nodes_to_exclude=left,
        use_external_data_format=True,
    )
    return [path for node in model.graph.node if node.name in left for path in _modules(node)]


def _modules(node: onnx.NodeProto) -> list[str]:
    """The path of the module that a node is of, as torch's exporter notes it; the model itself is inside a wrapper's ``model``."""
    scopes: list[str] = next((ast.literal_eval(found.value) for found in node.metadata_props if found.key == SCOPES), [])
    return [scopes[-2].removeprefix("model.")] if len(scopes) > 1 else []


def _in_blocks(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(str(source), bits=4, block_size=BLOCK, is_symmetric=False, quant_format=QuantFormat.QDQ)
    tool.process()
    tool.model.save_model_to_file(str(target), use_external_data_format=True)


def _product(weight: torch.Tensor) -> Any:
    """A model of one MatMul named ``m`` with these weights."""
    outputs, inputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(weight.T.contiguous().numpy(), "w")],
    )
    found: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return found


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what the quantisers log about every node, and numpy's warnings about blocks of zeros, which they handle."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logging.disable(before)
