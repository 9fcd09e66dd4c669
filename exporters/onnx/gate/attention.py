"""How far back a fused graph looks and by which angles it turns, read from the graph and compared with transformers' own.

GroupQueryAttention takes positions from the lengths of texts, so that a short text never reads the end of its rotary tables. The tables
are compared over their whole length instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from transformers import PretrainedConfig, PreTrainedModel

from exporters.onnx.files import GRAPH, PAST
from exporters.onnx.sparsity import load_graph, load_values
from pipeline.common.errors import GateError
from pipeline.evaluate.gates import REPORT, attention_window

ATTENTION = "GroupQueryAttention"
TABLES = {7: "cosine", 8: "sine"}  # inputs of the operator
CHUNK = 8192  # positions whose angles are in memory at once
BARS = {"fp16": 1e-3, "bf16": 8e-3}  # of the largest number in a table: half a step of the format, and the order of sums
BAR = 2e-5
EVERYTHING = -1  # what the operator calls no window


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
        GateError: a window or an angle is another one, or the tables end before the last promised position.
    """
    graph = load_graph(folder / GRAPH).graph
    nodes = [node for node in graph.node if node.op_type == ATTENTION]
    windows = windows_by_block(model.config)
    for node in nodes:
        block = int(node.input[3].removeprefix(PAST).split(".")[0])
        _same_window(windows[block], node, block, promised, folder)
    held = {tensor.name: tensor for tensor in graph.initializer}
    tables = {(place, node.input[place]) for node in nodes for place in TABLES}
    for place, name in sorted(tables):
        tensor = held[name]
        if uses_external_data(tensor):
            load_values(tensor, folder)
        _same_angles(model, place, np.asarray(numpy_helper.to_array(tensor)), promised, BARS.get(precision, BAR), folder)
    return {"blocks": len(nodes), "windows": sorted({window for window in windows if window}), "table positions": promised if tables else 0}


def windows_by_block(config: PretrainedConfig) -> list[int | None]:
    """Tokens that each block attends to, as transformers' config says; None where it attends to all."""
    window, types = attention_window(config), getattr(config, "layer_types", None)
    blocks = int(config.num_hidden_layers)
    return [window] * blocks if types is None else [window if "sliding" in kind else None for kind in types]


def _same_window(window: int | None, node: NodeProto, block: int, promised: int, folder: Path) -> None:
    stated = next((helper.get_attribute_value(one) for one in node.attribute if one.name == "local_window_size"), EVERYTHING)
    expected = EVERYTHING if window is None or window >= promised else window
    if stated != expected and not (expected == EVERYTHING and stated >= promised):
        said = {EVERYTHING: "everything before it"}
        raise GateError(
            f"The graph in {folder} attends to {said.get(stated, f'{stated} tokens')} in block {block}, "
            f"and the checkpoint to {said.get(expected, f'{expected} tokens')}.",
            REPORT,
        )


def _same_angles(model: PreTrainedModel, place: int, table: np.ndarray, promised: int, bar: float, folder: Path) -> None:
    if len(table) < promised:
        raise GateError(f"The {TABLES[place]} table in {folder} ends after {len(table)} of {promised} promised positions.", REPORT)
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    for at in range(0, promised, CHUNK):
        positions = torch.arange(at, min(at + CHUNK, promised))
        with torch.no_grad():
            expected = rotary(torch.zeros(1), positions[None])[list(TABLES).index(place)][0]
        found = torch.from_numpy(table[at : at + len(positions)].astype(np.float32))
        apart = (expected[:, : found.shape[1]] - found).abs().amax(1)
        if (beyond := (apart > bar * max(1.0, expected.abs().max().item())).nonzero()).numel():
            first = int(beyond[0])
            raise GateError(
                f"The {TABLES[place]} table in {folder} is off by {apart[first].item():.2g} at position {at + first}, where {bar:.2g} is allowed.",
                REPORT,
            )
