"""Products whose activations one int8 scale cannot hold stay in fp32 in the portable graph, and are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnxruntime import InferenceSession, quantization
from safetensors.torch import load_file, save_file

from exporters.onnx.lowering import quantise
from exporters.onnx.lowering.outliers import products_of, prompts
from exporters.onnx.lowering.portable import lower_portable
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from tests.exporters.models import OPTIONS, stock, uneven
from tests.quick import quick_alone

INT8 = ExportSlice(lowering="portable", precision="int8")
TOWERS = "model.layers.1.mlp.{}.weight"


@pytest.fixture
def towering(tmp_path: Path) -> Path:
    """A model that computes what it did, one channel of whose second FFN is a thousand times larger between its two projections."""
    folder = stock("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights[TOWERS.format("up_proj")][3] *= 1000
    weights[TOWERS.format("down_proj")][:, 3] /= 1000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_towers_stays_and_is_named(towering: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    out = tmp_path / "out"
    out.mkdir()
    export(towering, INT8, OPTIONS, out, Events(told.append))
    bits = json.loads((out / "export.json").read_text())["bits"]
    assert {name: width for name, width in bits.items() if "proj" in name} == {"1.mlp.down_proj": 32}
    assert any("1 products stay in fp32" in str(event) for event in told)
    assert json.loads((out / "gate.json").read_text())["perplexity"]["passed"]
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    geometry = Checkpoint(towering).geometry
    kept = [tuple(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT]
    assert kept.count((geometry.blocks[1].ffn, geometry.hidden)) == 1
    assert not list(out.glob("*watched*"))


def test_int8_that_holds_nothing_is_refused(towering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "LARGEST_ERROR", 0.0)
    with pytest.raises(TrimlineError, match="One int8 scale holds the activations of no product"):
        export(towering, INT8, OPTIONS, tmp_path, Events())


@pytest.mark.parametrize("family", quick_alone(("llama", "opt", "phi3"), ("phi3",)))
def test_products_are_named_by_the_module_that_they_are_of(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(uneven(family, tmp_path))
    ir.save(lower_portable(checkpoint, "fp32", Events()), tmp_path / "whole.onnx")
    model = onnx.load(tmp_path / "whole.onnx")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    geometry = checkpoint.geometry
    blocks = enumerate(geometry.blocks)
    wanted = {geometry.family.module(at, linear.name): shape[::-1] for at, block in blocks for linear, shape in geometry.linears(block)}
    wanted[geometry.family.head] = (geometry.hidden, geometry.vocab)
    nodes = {node.name: node for node in model.graph.node}
    found = {quantise._modules(nodes[one.node])[0]: shapes[one.weight] for one in products_of(model, list(nodes))}
    assert len(found) > 8
    assert found.items() <= wanted.items()


def test_int8_is_what_the_tool_makes_of_the_whole_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool sees one product at a time, and an input that several products read is rounded once."""
    held: list[int] = []
    real = quantization.quantize_dynamic

    def seen(model: onnx.ModelProto, *arguments: Any, **options: Any) -> None:
        held.append(len(model.graph.initializer))
        real(model, *arguments, **options)

    monkeypatch.setattr(quantization, "quantize_dynamic", seen)
    checkpoint = Checkpoint(stock("llama", tmp_path))
    whole, ours, theirs = (tmp_path / f"{name}.onnx" for name in ("whole", "ours", "theirs"))
    ir.save(lower_portable(checkpoint, "fp32", Events()), whole)
    model = onnx.load(whole)
    del model.graph.value_info[:]  # the tool turns weights round, and trips over the shapes that they are said to have
    made, left = quantise.quantised_graph(ir.load(whole), "int8", tmp_path)
    ir.save(made, ours)
    real(model, theirs, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=quantization.QuantType.QUInt8)
    products = 7 * len(checkpoint.geometry.blocks) + 1
    assert (held, left) == ([1] * products, [])
    graphs = {path: onnx.load(path).graph for path in (ours, theirs)}
    [ours_nodes, theirs_nodes] = [
        sorted((node.op_type, node.name, *node.input, *node.output) for node in graphs[path].node) for path in graphs
    ]
    assert ours_nodes == theirs_nodes
    kinds = [node.op_type for node in graphs[ours].node]
    assert (kinds.count("MatMulInteger"), kinds.count("DynamicQuantizeLinear")) == (products, 4 * len(checkpoint.geometry.blocks) + 1)
    assert {tensor.name for tensor in graphs[ours].initializer} == {tensor.name for tensor in graphs[theirs].initializer}
    [feed] = prompts(model, np.arange(12)[None])
    np.testing.assert_array_equal(*(InferenceSession(path).run(["logits"], feed)[0] for path in (ours, theirs)))
