"""Every precision of both lowerings, of blocks alike and uneven: gated by perplexity, and run by onnxruntime-genai."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from exporters.onnx.gate.divergence import BAR, compare_distributions
from exporters.onnx.gate.perplexity import compared
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import PERPLEXITY_BARS, ExportSlice, Precision
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS, stock, uneven
from tests.quick import quick_alone

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
Lowering = Literal["fused", "portable"]
STANDARD = {"", "ai.onnx"}


def exported(
    checkpoint: Path, out: Path, lowering: Lowering, precision: Precision, bar: float | None = None
) -> tuple[Path, dict[str, Any]]:
    out.mkdir(parents=True)
    export(checkpoint, ExportSlice(lowering=lowering, precision=precision, perplexity_bar=bar), OPTIONS, out, Events())
    return out, json.loads((out / "gate.json").read_text())


def checked(gate: dict[str, Any], precision: Precision) -> None:
    assert gate["precision"] == precision
    assert gate["perplexity"]["passed"]
    assert gate["perplexity"]["bar"] == PERPLEXITY_BARS[precision]
    assert gate["genai"]["run"]
    assert gate["genai"]["passed"]
    assert len(gate["checks"]) == 4
    assert all(check["passed"] and check["difference"] < BAR / 10 for check in gate["checks"].values())


def held(folder: Path) -> set[int]:
    """Types of the initialisers that are matrices."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_fused_of_blocks_alike(family: str, precision: Precision, tmp_path: Path) -> None:
    checkpoint = stock(family, tmp_path)
    _, gate = exported(checkpoint, tmp_path / "out", "fused", precision)
    checked(gate, precision)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_fused_of_uneven_blocks(family: str, precision: Precision, tmp_path: Path) -> None:
    checkpoint = uneven(family, tmp_path)
    _, gate = exported(checkpoint, tmp_path / "out", "fused", precision)
    checked(gate, precision)


@pytest.mark.parametrize("precision", quick_alone(("fp16", "int8", "int4"), ("int4",)))
def test_portable_of_uneven_blocks_is_made_of_standard_operators(precision: Precision, tmp_path: Path) -> None:
    out, gate = exported(uneven("opt", tmp_path, (1, 0, 4, 3)), tmp_path / "out", "portable", precision)
    checked(gate, precision)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    assert {node.domain for node in graph.node} <= STANDARD
    expected = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.UINT8, "int4": TensorProto.UINT4}
    assert expected[precision] in held(out)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_tied_table_is_stored_once_and_in_blocks(precision: Precision, tmp_path: Path) -> None:
    out, _ = exported(stock("llama", tmp_path), tmp_path / "out", "fused", precision)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    tables = [tensor for tensor in graph.initializer if tensor.dims and tensor.dims[0] == 128 and tensor.data_type == TensorProto.UINT8]
    assert len([tensor for tensor in tables if "qweight" in tensor.name and ".layers." not in tensor.name]) == 1
    assert not any(tensor.dims == [128, 64] and tensor.data_type == TensorProto.FLOAT for tensor in graph.initializer)
    assert "GatherBlockQuantized" in {node.op_type for node in graph.node}


def test_int4_is_smaller_than_int8_than_fp16_than_fp32_and_mixed(tmp_path: Path) -> None:
    checkpoint, sizes = stock("mistral", tmp_path, num_hidden_layers=8, hidden_size=128), []
    for precision in ("int4", "int8", "fp16", "fp32"):
        out, _ = exported(checkpoint, tmp_path / precision, "fused", precision)
        sizes.append((out / "model.onnx.data").stat().st_size)
    assert sizes == sorted(sizes)
    nodes = onnx.load(tmp_path / "int4" / "model.onnx", load_external_data=False).graph.node
    bits = {node.name: next(a.i for a in node.attribute if a.name == "bits") for node in nodes if node.op_type == "MatMulNBits"}
    assert set(bits.values()) == {4, 8}, "k-quants give the output head and the most sensitive projections 8 bits"
    assert bits["/lm_head/MatMulNBits"] == 8
    assert bits["/model/layers.0/mlp/down_proj/MatMulNBits"] == 8
    assert bits["/model/layers.0/mlp/gate_proj/MatMulNBits"] == 4


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_same_bytes_twice(precision: Precision, tmp_path: Path) -> None:
    checkpoint, digests = uneven("llama", tmp_path), []
    for name in ("first", "a/second/place"):
        out, _ = exported(checkpoint, tmp_path / name, "fused", precision)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
    assert digests[0] == digests[1]


def test_the_logits_are_fp32_in_every_precision(tmp_path: Path) -> None:
    out, _ = exported(stock("llama", tmp_path), tmp_path / "out", "fused", "fp16")
    decoder = OnnxDecoder(out, 1)
    assert decoder.logits(np.array([[5, 6, 7]])).dtype == np.float32
    assert {i.type for i in decoder.session.get_inputs() if i.name.startswith("past")} == {"tensor(float16)"}


def test_a_perplexity_beyond_its_bar_fails_the_export(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"perplexity of .* where its checkpoint has .* 1 is allowed.*perplexity_bar"):
        exported(uneven("qwen3", tmp_path, (2, 0, 4, 2)), tmp_path / "out", "fused", "int4", bar=1.0)


def test_bf16_is_refused_on_a_processor(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="no bf16 kernel"):
        exported(stock("llama", tmp_path), tmp_path / "out", "fused", "bf16")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_tokenizer_only_fp32_can_be_judged(tmp_path: Path) -> None:
    checkpoint = stock("llama", tmp_path)
    (checkpoint / "tokenizer.json").unlink()
    _, gate = exported(checkpoint, tmp_path / "fp32", "fused", "fp32")
    assert not gate["perplexity"]["run"]
    assert "no tokenizer" in gate["perplexity"]["why"]
    with pytest.raises(TrimlineError, match="int4 cannot be judged"):
        exported(checkpoint, tmp_path / "int4", "fused", "int4")


def test_ratio_of_perplexities() -> None:
    found = compared([1.0, 2.0], [1.1, 2.1], 1.2)
    assert found["ratio"] == pytest.approx(np.exp(0.1))
    assert found["graph"] == pytest.approx(np.exp(1.6))
    assert found["passed"]
    assert not compared([1.0, 2.0], [1.1, 2.1], 1.1)["passed"]
    assert not compared([1.0, 2.0], [float("nan"), 2.1], 1.1)["passed"]


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, np.log(3.0)]]])
    found = compare_distributions(p, q)
    assert found.difference == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert not found.passed
    assert compare_distributions(p, p).passed
    with pytest.raises(GateError, match="NaN"):
        compare_distributions(p, torch.full_like(p, float("nan")))
    with pytest.raises(GateError, match="shape"):
        compare_distributions(p, q[..., :1])
