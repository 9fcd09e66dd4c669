"""The gate of an OpenVINO export against a graph that is damaged in one place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.openvino.files import MODEL, WEIGHTS
from exporters.openvino.gate import compare_openvino
from exporters.openvino.stage import export_openvino
from exporters.recipe import ExportSlice
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS, stock
from tests.mutants.exports import edit_json

ov: Any = pytest.importorskip("openvino", reason="trimline[openvino] is not installed")
pytest.importorskip("nncf", reason="trimline[openvino] is not installed")
RECIPES = {"fp32": ExportSlice(format="openvino"), "int8": ExportSlice(format="openvino", precision="int8", perplexity_bar=10.0)}
Graph = Any
LAYER = "__module.model.model.layers.1."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock("llama", tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module")
def written(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(precision: str) -> Path:
        if precision not in made:
            out = tmp_path_factory.mktemp(precision) / "out"
            out.mkdir()
            export_openvino(checkpoint, RECIPES[precision], OPTIONS, out, Events())
            made[precision] = out
        return made[precision]

    return of


def edited(folder: Path, edit: Callable[[Graph], object]) -> None:
    """Changes the graph of a folder in place."""
    model = ov.Core().read_model(str(folder / MODEL))
    edit(model)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, str(folder / "new.xml"), compress_to_fp16=False)
    del model
    (folder / "new.xml").replace(folder / MODEL)
    (folder / "new.bin").replace(folder / WEIGHTS)


def of_kind(model: Graph, kind: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def product(model: Graph, name: str) -> Any:
    return next(node for node in of_kind(model, "MatMul") if node.get_friendly_name().startswith(LAYER + name))


def beams_forgotten(model: Graph) -> None:
    """The state of a key goes on in its own row, whatever beam_idx says."""
    state = next(node for node in of_kind(model, "Gather") if node.input_value(0).get_node().get_type_name() == "ReadValue")
    for reader in list(state.output(0).get_target_inputs()):
        reader.replace_source_output(state.input_value(0))


def states_crossed(model: Graph) -> None:
    """Two blocks keep each other's keys."""
    assigns = of_kind(model, "Assign")
    first, third = assigns[0].input_value(0), assigns[2].input_value(0)
    assigns[0].input(0).replace_source_output(third)
    assigns[2].input(0).replace_source_output(first)


def state_not_kept(model: Graph) -> None:
    """A state keeps what it had, without the tokens of this call."""
    gathered = next(node for node in of_kind(model, "Gather") if node.input_value(0).get_node().get_type_name() == "ReadValue")
    read = gathered.input_value(0).get_node()
    own = next(node for node in of_kind(model, "Assign") if node.get_variable_id() == read.get_variable_id())
    own.input(0).replace_source_output(gathered.output(0))


def positions_missing(model: Graph) -> None:
    """Every token stands at position 0."""
    positions = next(node for node in model.get_parameters() if "position_ids" in node.output(0).get_names())
    readers = list(positions.output(0).get_target_inputs())
    nothing = ov.opset13.multiply(positions, ov.opset13.constant(np.int64(0)))
    for reader in readers:
        reader.replace_source_output(nothing.output(0))


def swapped(model: Graph) -> None:
    """Keys are made with the weights of values."""
    key, value = product(model, "self_attn.k_proj"), product(model, "self_attn.v_proj")
    of_key, of_value = key.input_value(1), value.input_value(1)
    key.input(1).replace_source_output(of_value)
    value.input(1).replace_source_output(of_key)


def softer(model: Graph) -> None:
    """Scores of attention are scaled by other than the square root of a head's width."""
    attention = of_kind(model, "ScaledDotProductAttention")[0]
    query = attention.input_value(0)
    attention.input(0).replace_source_output(ov.opset13.multiply(query.get_node(), ov.opset13.constant(np.float32(0.9))).output(0))


def scaled(factor: float) -> Callable[[Graph], None]:
    """One row of scales of one projection is off."""

    def edit(model: Graph) -> None:
        multiply = product(model, "mlp.up_proj").input_value(1).get_node()
        while multiply.get_type_name() != "Multiply":
            multiply = multiply.input_value(0).get_node()
        one = np.ones((multiply.get_output_shape(0)[0], 1), np.float32)
        one[3] = factor
        readers = list(multiply.output(0).get_target_inputs())
        kind = multiply.get_output_element_type(0)
        wrong = ov.opset13.multiply(multiply, ov.opset13.constant(one, kind))
        for reader in readers:
            reader.replace_source_output(wrong.output(0))

    return edit


MUTANTS: dict[str, tuple[str, Callable[[Graph], object], str]] = {
    "beam_idx is forgotten": ("fp32", beams_forgotten, "rows that change places"),
    "states of two blocks are crossed": ("fp32", states_crossed, "with cache, token by token"),
    "a state does not keep its tokens": ("fp32", state_not_kept, "with cache, token by token|cannot|shape"),
    "positions are missing": ("fp32", positions_missing, "without cache"),
    "weights are swapped": ("fp32", swapped, "layers.1.self_attn.k_proj"),
    "scores are scaled otherwise": ("fp32", softer, "without cache"),
    "a row of scales is 3 % off": ("int8", scaled(1.03), "layers.1.mlp.up_proj .output 3 scaled by 1.03"),
    "weights in 8 bits are swapped": ("int8", swapped, "layers.1.self_attn.k_proj"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_gate_catches_a_graph_that_is_damaged_in_one_place(
    name: str, checkpoint: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    precision, edit, said = MUTANTS[name]
    shutil.copytree(written(precision), tmp_path / "mutant")
    edited(tmp_path / "mutant", edit)
    with pytest.raises(GateError, match=said):
        compare_openvino(checkpoint, tmp_path / "mutant", RECIPES[precision], OPTIONS, Events())


BESIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another end of text": (
        lambda folder: edit_json(folder, "generation_config.json", lambda it: it.update(eos_token_id=5)),
        "eos_token_id",
    ),
    "more positions than there are": (
        lambda folder: edit_json(folder, "export.json", lambda it: it.update(positions=10**6)),
        "promises 1000000",
    ),
    "no detokenizer": (lambda folder: (folder / "openvino_detokenizer.xml").unlink(), "lacks"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_the_gate_reads_what_stands_beside_the_graph(name: str, checkpoint: Path, written: Callable[[str], Path], tmp_path: Path) -> None:
    damage, said = BESIDE[name]
    shutil.copytree(written("fp32"), tmp_path / "mutant")
    damage(tmp_path / "mutant")
    with pytest.raises(GateError, match=said):
        compare_openvino(checkpoint, tmp_path / "mutant", RECIPES["fp32"], OPTIONS, Events())
