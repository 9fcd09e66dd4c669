"""Logits of the last position only, in either lowering, and the way back to all of them.

The output head is a large share of a small model, and who generates text needs it for one position of a prompt. So a few
nodes before the head pick the last *token* of every row, wherever a shorter row's padding stands. Perplexity needs every
position: the same graph without those nodes, over the same weights file, opened from memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporters.onnx.files import WEIGHTS
from pipeline.common.errors import TrimlineError

PREFIX = "/last_position/"
CHOOSE = f"{PREFIX}GatherND"
STEPS = ("Shape", "Neg", "Slice", "CumSum", "Min", "ReduceSum", "Sub", "Unsqueeze", "GatherND")
CONSTANTS = ("one", "axis", "end", "behind")
ADDED = {f"{PREFIX}{name}" for name in (*STEPS, *CONSTANTS)}  # a quantiser may derive names of its own from these
HEADS = {"MatMul", "FusedMatMul", "MatMulNBits", "Gemm"}
AFTER_HEAD = {"Cast", "Add", "Identity", "Mul", "Div", "Tanh"}  # biases, multipliers and soft caps of logits


def keep_last_position(model: ir.Model) -> None:
    """Puts the choice of each row's last token before the output head; ``logits`` become (batch, 1, vocabulary).

    Raises:
        TrimlineError: the graph has no output head where one is expected.
    """
    graph = model.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    head = _head(model)
    hidden = head.inputs[0]
    assert hidden is not None
    chosen, nodes = _choice(graph, hidden)
    graph.extend(nodes)
    head.replace_input_with(0, chosen)
    _shorten(head, logits)
    graph.sort()


def all_positions(graph: Path) -> bytes | None:
    """The graph in a file without the choice, serialised without its weights; None where it gives all positions already.

    Its weights lie in ``weights_folder(graph)``, by the names that they have there.
    """
    model = onnx.load(graph, load_external_data=False)
    choose = next((node for node in model.graph.node if node.name == CHOOSE), None)
    if choose is None:
        return None
    for parts in (model.graph.node, model.graph.initializer):
        kept = [part for part in parts if part.name not in ADDED]
        del parts[:]
        parts.extend(kept)
    for node in model.graph.node:
        node.input[:] = [choose.input[0] if name == choose.output[0] else name for name in node.input]
    del model.graph.value_info[:]  # they say "one position" behind the choice
    ids = next(value for value in model.graph.input if value.name == "input_ids")
    logits = next(value for value in model.graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].CopyFrom(ids.type.tensor_type.shape.dim[1])
    _name_resolved(model, graph.parent)
    return bytes(model.SerializeToString())


def weights_folder(graph: Path) -> Path:
    """Where the weights of a graph really lie: in a hub's cache both are links.

    ONNX Runtime follows links, and refuses weights outside the folder that it is told of. Where it opens a graph by its path, it
    follows that path first.
    """
    return (graph.parent / WEIGHTS).resolve().parent


def _name_resolved(model: onnx.ModelProto, folder: Path) -> None:
    """Names each file of weights as it is called where it really lies."""
    for initializer in model.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = (folder / entry.value).resolve().name


def output_product(model: ir.Model) -> ir.Node | None:
    """What the logits are made of before biases, multipliers and soft caps; None where nothing makes them."""
    node = next(value for value in model.graph.outputs if value.name == "logits").producer()
    while node is not None and node.op_type in AFTER_HEAD:
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
        node = next((maker for maker in makers if maker.op_type != "Constant"), None)
    return node


def _head(model: ir.Model) -> ir.Node:
    node = output_product(model)
    if node is None or node.op_type not in HEADS:
        raise TrimlineError(
            f"The graph's logits come from {node.op_type if node else 'nowhere'}, not from an output head.", "Use logits: all."
        )
    return node


def _choice(graph: ir.Graph, hidden: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """(batch, sequence, hidden) to (batch, 1, hidden).

    Where the mask of the new tokens ends in zeros (padding), the token before them counts. A mask of zeros alone gives
    index −1, the last: some runtimes hand over a mask that is longer than what they fill.
    """
    inputs = {value.name: value for value in graph.inputs}
    nodes: list[ir.Node] = []

    def add(op: str, *given: ir.Value, **attributes: int) -> ir.Value:
        output = ir.Value(name=f"{PREFIX}{op}_output")
        nodes.append(ir.node(op, list(given), attributes=attributes, outputs=[output], name=f"{PREFIX}{op}"))
        return output

    def constant(name: str, value: object) -> ir.Value:
        array = np.asarray(value, np.int64)
        tensor = ir.tensor(array, name=f"{PREFIX}{name}")
        found = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64))
        graph.register_initializer(found)
        return found

    one, axis = constant("one", 1), constant("axis", [1])
    start = add("Neg", add("Shape", inputs["input_ids"], start=1, end=2))
    new = add("Slice", inputs["attention_mask"], start, constant("end", [2**62]), axis)
    not_after = add("Min", add("CumSum", new, one, reverse=1), one)  # 1 up to the last token, 0 behind it
    place = add("Sub", add("ReduceSum", not_after, axis, keepdims=1), one)
    chosen = add("GatherND", hidden, add("Unsqueeze", place, constant("behind", [2])), batch_dims=1)
    chosen.type = hidden.type
    return chosen, nodes


def _shorten(head: ir.Node, logits: ir.Value) -> None:
    """What stands between the head and the output now has one position."""
    node: ir.Node | None = head
    while node is not None:
        value = node.outputs[0]
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
        node = None if value is logits else next(iter(value.uses())).node
