"""The gate of an ONNX export against a graph that is damaged in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.recipe import ExportSlice
from pipeline.common.errors import GateError
from tests.exporters.models import stock
from tests.mutants.exports import damaged, edit_graph, edit_tensors, exported, gated

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
WINDOW, POSITIONS, LAST_RIGHT = 64, 600, 520
SIZES = {"sliding_window": WINDOW, "max_position_embeddings": POSITIONS}
FUSED, PORTABLE = ExportSlice(lowering="fused"), ExportSlice(lowering="portable")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock("mistral", tmp_path_factory.mktemp("onnx"), **SIZES)


@pytest.fixture(scope="module")
def fused(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("fused") / "out", FUSED)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock("mistral", tmp_path_factory.mktemp("one"), num_hidden_layers=1, **SIZES)


@pytest.fixture(scope="module")
def portable(one_block: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(one_block, tmp_path_factory.mktemp("portable") / "out", PORTABLE)


def window(tokens: int) -> Damage:
    """Of block 1 in a fused graph."""

    def set_window(model: onnx.ModelProto) -> None:
        nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention" and "layers.1" in node.name]
        (attribute,) = (one for node in nodes for one in node.attribute if one.name == "local_window_size")
        attribute.i = tokens

    return lambda folder: edit_graph(folder, set_window)


def angles(of: Callable[[NDArray[Any]], NDArray[Any]], name: str = "cos_cache") -> Damage:
    """The rotary tables of a fused graph beyond the last right position."""

    def edit(tensor: str, table: NDArray[Any]) -> NDArray[Any] | None:
        return np.concatenate([table[: LAST_RIGHT + 1], of(table)[LAST_RIGHT + 1 :]]) if tensor == name else None

    return lambda folder: edit_tensors(folder, edit)


def shorter_tables(folder: Path) -> None:
    edit_tensors(folder, lambda name, table: table[:-1] if name in ("cos_cache", "sin_cache") else None)


FUSED_MUTANTS: dict[str, tuple[Damage, str]] = {
    "no window": (window(-1), f"attends to everything before it in block 1, and the checkpoint to {WINDOW} tokens"),
    "a window of one more": (window(WINDOW + 1), f"attends to {WINDOW + 1} tokens in block 1"),
    "a window of one less": (window(WINDOW - 1), f"attends to {WINDOW - 1} tokens in block 1"),
    "angles that stay": (angles(lambda table: np.broadcast_to(table[LAST_RIGHT], table.shape)), "cosine table .* at position 521"),
    "angles of the position before": (angles(lambda table: np.roll(table, 1, 0), "sin_cache"), "sine table .* at position 521"),
    "tables without the last position": (shorter_tables, f"ends after {POSITIONS - 1} of {POSITIONS} promised positions"),
}


@pytest.mark.parametrize("name", FUSED_MUTANTS)
def test_windows_and_angles_of_a_fused_graph_are_those_of_the_checkpoint(name: str, checkpoint: Path, fused: Path, tmp_path: Path) -> None:
    damage, said = FUSED_MUTANTS[name]
    with pytest.raises(GateError, match=said):
        gated(checkpoint, damaged(fused, tmp_path / "mutant", damage), FUSED)


def portable_window(tokens: int) -> Damage:
    """Of every block of a portable graph, which has it as a constant."""

    def set_window(model: onnx.ModelProto) -> None:
        held = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
        held += [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
        found = [tensor for tensor in held if np.array_equal(numpy_helper.to_array(tensor), WINDOW)]
        assert found
        for tensor in found:
            tensor.CopyFrom(numpy_helper.from_array(np.array(tokens, np.int64), tensor.name))

    return lambda folder: edit_graph(folder, set_window)


def no_later_position(folder: Path) -> None:
    """Every position beyond the last right one turns as that one does; windows stay as they are."""

    def clamp(model: onnx.ModelProto) -> None:
        graph = model.graph
        casts = [node for node in graph.node if node.op_type in ("Cast", "Unsqueeze") and "position_ids" in node.input]
        turned = [node for node in casts if _reaches(graph, node.output[0], {"Cos", "Sin"})]
        assert turned
        graph.initializer.append(numpy_helper.from_array(np.array(LAST_RIGHT, np.int64), "last_right"))
        graph.node.insert(0, helper.make_node("Min", ["position_ids", "last_right"], ["clamped"]))
        for node in turned:
            node.input[:] = ["clamped" if name == "position_ids" else name for name in node.input]

    edit_graph(folder, clamp)


def _reaches(graph: onnx.GraphProto, name: str, kinds: set[str]) -> bool:
    readers = [node for node in graph.node if name in node.input]
    return any(
        node.op_type in kinds or _reaches(graph, node.output[0], kinds) for node in readers if node.op_type not in ("Where", "MatMul")
    )


PORTABLE_MUTANTS: dict[str, tuple[Damage, str]] = {
    "no window": (portable_window(10**6), f"beyond the sliding window of {WINDOW} tokens"),
    "a window of one more": (portable_window(WINDOW + 1), f"beyond the sliding window of {WINDOW} tokens"),
    "angles that stay": (no_later_position, f"up to position {POSITIONS - 1}"),
}


@pytest.mark.parametrize("name", PORTABLE_MUTANTS)
def test_rows_that_reach_far_show_what_a_portable_graph_does_there(name: str, one_block: Path, portable: Path, tmp_path: Path) -> None:
    damage, said = PORTABLE_MUTANTS[name]
    with pytest.raises(GateError, match=said):
        gated(one_block, damaged(portable, tmp_path / "mutant", damage), PORTABLE)
