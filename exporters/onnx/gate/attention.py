"""How far back a fused graph looks and by which angles it turns, read from the graph and compared with transformers' own.

GroupQueryAttention takes positions from the lengths of texts, so that a short text never reads the end of its rotary tables. The tables
are compared over their whole length instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from transformers import PretrainedConfig, PreTrainedModel

from exporters.onnx.files import GRAPH, PAST
from exporters.onnx.gate.matching import block_of
from exporters.onnx.sparsity import load_graph, load_values
from pipeline.common.errors import GateError
from pipeline.evaluate.gates import REPORT, attention_window

ATTENTION, ROTARY = "GroupQueryAttention", "RotaryEmbedding"
TABLES = ("cosine", "sine")
PLACES = {ATTENTION: (7, 8), ROTARY: (2, 3)}  # inputs of the operators that are these tables
CHUNK = 8192  # positions whose angles are in memory at once
BARS = {"fp16": 1e-3, "bf16": 8e-3}  # of the largest number in a table: half a step of the format, and the order of sums
BAR = 2e-5
EVERYTHING = -1  # what the operator calls no window


@dataclass(frozen=True, order=True)
class AngleTable:
    """A table that a block turns by: ``TABLES``' index, the initialiser, and the block's type where transformers asks for one."""

    which: int
    name: str
    kind: str


def compare_attention(model: PreTrainedModel, folder: Path, promised: int, precision: str) -> dict[str, Any]:
    """Windows and rotary tables of every GroupQueryAttention; a graph without any has nothing of it.

    Args:
        model: the checkpoint in torch, fp32.
        folder: the export.
        promised: positions that the folder says it takes.
        precision: of the tables.

    Returns:
        JSON-compatible: blocks and positions that were looked at.

    Raises:
        GateError: a window or an angle is another one, a block turns that should not or the other way round, or the tables end before
            the last promised position.
    """
    graph = load_graph(folder / GRAPH).graph
    nodes = [node for node in graph.node if node.op_type == ATTENTION]
    windows, turning = windows_by_block(model.config), [node for node in graph.node if node.op_type in PLACES]
    for node in nodes:
        block = int(node.input[3].removeprefix(PAST).split(".")[0])  # which cache it reads, whatever it is called
        _same_window(windows[block], node, block, promised, folder)
        _same_turning(model, block, any(block_of(other.name) == block for other in turning if list(_tables(model, other))), folder)
    held = {tensor.name: tensor for tensor in graph.initializer}
    tables = {table for node in turning for table in _tables(model, node)}
    for table in sorted(tables):
        tensor = held[table.name]
        if uses_external_data(tensor):
            load_values(tensor, folder)
        _same_angles(model, table, np.asarray(numpy_helper.to_array(tensor)), promised, BARS.get(precision, BAR), folder)
    return {"blocks": len(nodes), "windows": sorted({window for window in windows if window}), "table positions": promised if tables else 0}


def windows_by_block(config: PretrainedConfig) -> list[int | None]:
    """Tokens that each block attends to, as transformers' config says; None where it attends to all."""
    window, types = attention_window(config), getattr(config, "layer_types", None)
    blocks = int(config.num_hidden_layers)
    return [window] * blocks if types is None else [window if "sliding" in kind else None for kind in types]


def _tables(model: PreTrainedModel, node: NodeProto) -> Iterator[AngleTable]:
    """What a node turns by; nothing where it leaves queries and keys as they are."""
    if node.op_type == ATTENTION and not _stated(node, "do_rotary", 0):
        return
    kind = str(model.config.layer_types[block_of(node.name)]) if _by_kind(_rotary(model)) else ""
    for which, place in enumerate(PLACES[node.op_type]):
        yield AngleTable(which, node.input[place], kind)


def _rotary(model: PreTrainedModel) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def _by_kind(rotary: Any) -> bool:
    return "layer_type" in inspect.signature(rotary.forward).parameters


def _stated(node: NodeProto, name: str, default: int) -> int:
    return next((int(helper.get_attribute_value(one)) for one in node.attribute if one.name == name), default)


def _same_turning(model: PreTrainedModel, block: int, turns: bool, folder: Path) -> None:
    """transformers says of a block's attention that it leaves the rotary embedding out, where blocks differ in that."""
    inside = (module for name, module in model.named_modules() if f"layers.{block}." in name)
    expected = next((bool(module.use_rope) for module in inside if hasattr(module, "use_rope")), True)
    if turns != expected:
        said = {True: "turns queries and keys", False: "turns no queries and keys"}
        raise GateError(f"The graph in {folder} {said[turns]} in block {block}, and the checkpoint {said[expected]}.", REPORT)


def _same_window(window: int | None, node: NodeProto, block: int, promised: int, folder: Path) -> None:
    stated = _stated(node, "local_window_size", EVERYTHING)
    expected = EVERYTHING if window is None or window >= promised else window
    if stated != expected and not (expected == EVERYTHING and stated >= promised):
        said = {EVERYTHING: "everything before it"}
        raise GateError(
            f"The graph in {folder} attends to {said.get(stated, f'{stated} tokens')} in block {block}, "
            f"and the checkpoint to {said.get(expected, f'{expected} tokens')}.",
            REPORT,
        )


def _same_angles(model: PreTrainedModel, table: AngleTable, found: np.ndarray, promised: int, bar: float, folder: Path) -> None:
    named = f"The {TABLES[table.which]} table" + (f" of {table.kind}" if table.kind else "")
    if len(found) < promised:
        raise GateError(f"{named} in {folder} ends after {len(found)} of {promised} promised positions.", REPORT)
    rotary = _rotary(model)
    for at in range(0, promised, CHUNK):
        positions = torch.arange(at, min(at + CHUNK, promised))
        with torch.no_grad():
            expected = rotary(torch.zeros(1), positions[None], *([table.kind] if table.kind else []))[table.which][0]
        part = torch.from_numpy(found[at : at + len(positions)].astype(np.float32))
        apart = (expected[:, : part.shape[1]] - part).abs().amax(1)
        if (beyond := (apart > bar * max(1.0, expected.abs().max().item())).nonzero()).numel():
            first = int(beyond[0])
            raise GateError(
                f"{named} in {folder} is off by {apart[first].item():.2g} at position {at + first}, where {bar:.2g} is allowed.", REPORT
            )
