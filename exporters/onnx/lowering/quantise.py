"""Weights in 8 and 4 bits, by ONNX Runtime's own quantisers.

The fused lowering is quantised one matrix at a time, so that neither memory nor protobuf's two gigabytes limit the
model: each projection goes through ``MatMulNBitsQuantizer`` in a graph of its own. So do the products of the portable
graph through the tool for int8; its int4 is made of the whole graph at once. Both keep to standard operators.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.lowering.outliers import Product, observe, products_of, prompts
from pipeline.common.errors import TrimlineError

BLOCK = 32  # inputs that share one scale: what the builder takes on a processor
SLICE = 2**22  # weights that go through a tool at once: it holds some ten times as many numbers meanwhile
WHOLE = "whole.onnx"
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: paths from the whole model to the operator itself
ALONE = Product(node="m", given="x", weight="w", result="y")
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
    algorithm = tool.KQuantWeightOnlyQuantConfig(customized_weight_config={ALONE.node: {"bits": bits}}) if method == "k_quant" else None
    model = _model_of(ALONE, weight.T.contiguous().numpy())
    quantizer = tool.MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=symmetric, algo_config=algorithm)
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
    source = folder / WHOLE
    ir.save(model, source, external_data=f"{WHOLE}.data")
    try:
        left: list[str] = []
        with _silenced():
            if precision == "int8":
                found, left = _dynamic(source, windows, threads)
            else:
                found = _in_blocks(source)
        ir.external_data.load_to_model(found)
    finally:
        for path in folder.glob(f"*{WHOLE}*"):
            path.unlink()
    return found, left


def _dynamic(source: Path, windows: torch.Tensor | None, threads: int) -> tuple[ir.Model, list[str]]:
    """One product at a time: the tool holds a model it is given several times over."""
    model = onnx.load(source, load_external_data=False)
    products = products_of(model, [node.name for node in model.graph.node])
    left: list[str] = []
    if windows is not None:
        seen = observe(source, (product.given for product in products), prompts(model, windows.numpy()), threads)
        left = [product.node for product in products if seen[product.given].error > LARGEST_ERROR]
    if len(left) == len(products):
        raise TrimlineError("One int8 scale holds the activations of no product of this model.", "Use lowering: fused, or precision: int4.")
    found, rounded = ir.load(source), dict[str, ir.Value]()
    nodes = {node.name: node for node in found.graph}
    for product in products:
        if product.node not in left:
            weight = found.graph.initializers.pop(product.weight).const_value
            assert weight is not None
            quantised = _in_int8(product, weight.numpy(), found.opset_imports[""], source.with_name(f"product-{WHOLE}"))
            _replace(found.graph, nodes[product.node], quantised, rounded)
    return found, [path for node in model.graph.node if node.name in left for path in _modules(node)]


def _in_int8(product: Product, weight: NDArray[np.float32], opset: int, file: Path) -> ir.Graph:
    """What the tool makes of a product; it names nodes and tensors after the product's, which are unlike those of others."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # uint8 weights: processors without VNNI saturate the sums of products of uint8 with int8.
    quantize_dynamic(_model_of(product, weight, opset), file, per_channel=True, weight_type=QuantType.QUInt8)
    return ir.from_proto(onnx.load(file)).graph


def _replace(graph: ir.Graph, node: ir.Node, quantised: ir.Graph, rounded: dict[str, ir.Value]) -> None:
    """Puts the nodes of ``quantised`` in the place of a product's.

    Args:
        rounded: inputs that were rounded for earlier products, by name: one is rounded once for all that read it.
    """
    known: dict[str, ir.Value | None] = {str(quantised.inputs[0].name): node.inputs[0], **rounded}
    for name, value in quantised.initializers.items():
        stored = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
        graph.register_initializer(stored)
        known[name] = stored
    new, results = [], dict[str, ir.Value]()
    for made in quantised:
        outputs = {str(value.name): ir.Value(name=value.name) for value in made.outputs}
        if outputs.keys() <= rounded.keys():
            continue
        inputs = [known[str(value.name)] for value in made.inputs if value is not None]
        new.append(ir.Node(made.domain, made.op_type, inputs, made.attributes.values(), outputs=list(outputs.values()), name=made.name))
        known |= outputs
        results |= outputs
        if made.op_type == "DynamicQuantizeLinear":
            rounded |= outputs
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, [results[str(node.outputs[0].name)]])


def _modules(node: onnx.NodeProto) -> list[str]:
    """The path of the module that a node is of, as torch's exporter notes it; the model itself is inside a wrapper's ``model``."""
    scopes: list[str] = next((ast.literal_eval(found.value) for found in node.metadata_props if found.key == SCOPES), [])
    return [scopes[-2].removeprefix("model.")] if len(scopes) > 1 else []


def _in_blocks(source: Path) -> ir.Model:
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    target = source.with_name(f"quantised-{WHOLE}")
    tool = MatMulNBitsQuantizer(str(source), bits=4, block_size=BLOCK, is_symmetric=False, quant_format=QuantFormat.QDQ)
    tool.process()
    tool.model.save_model_to_file(str(target), use_external_data_format=True)
    found = ir.load(target)
    _order_as(found.graph, onnx.load(source, load_external_data=False))
    return found


def _order_as(graph: ir.Graph, before: onnx.ModelProto) -> None:
    """Puts nodes into the order that they had, where a tool changed that of the products: the order says which module each is of.

    Sublayers that read the same norm may change places in a graph, since neither waits for the other.
    """
    places = {name: place for place, node in enumerate(before.graph.node) for name in node.output}
    products = [places[str(node.outputs[0].name)] for node in graph if node.op_type == "MatMul"]
    if products == sorted(products):
        return

    def place(node: ir.Node) -> int:
        result = node.outputs[0]
        if str(result.name) in places:
            return places[str(result.name)]
        return min(place(use.node) for use in result.uses())  # what the tool added stands before what reads it

    nodes = sorted(graph, key=lambda node: (place(node), str(node.outputs[0].name) in places))
    graph.remove(nodes)
    graph.extend(nodes)


def _model_of(product: Product, weight: NDArray[np.float32], opset: int = 21) -> onnx.ModelProto:
    """A model of this product alone, with weights (inputs, outputs)."""
    inputs, outputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", [product.given, product.weight], [product.result], name=product.node)],
        "product",
        [helper.make_tensor_value_info(product.given, TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info(product.result, TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(weight, product.weight)],
    )
    found: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
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
