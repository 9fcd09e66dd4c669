"""Logits of each row's last token by default, in both lowerings, and every position from the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.onnx.lowering.last_position import PREFIX, all_positions, keep_last_position
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.models import OPTIONS, stock

LOWERINGS = ("fused", "portable")


@pytest.fixture(scope="module", params=LOWERINGS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    lowering: Literal["fused", "portable"] = request.param
    if lowering == "fused":
        pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    place = tmp_path_factory.mktemp(lowering)
    checkpoint = stock("qwen2", place)
    last, whole = place / "last", place / "all"
    for out, recipe in ((last, ExportSlice(lowering=lowering)), (whole, ExportSlice(lowering=lowering, logits="all"))):
        out.mkdir()
        export(checkpoint, recipe, OPTIONS, out, Events())
    return {"last": last, "all": whole}


def test_the_last_position_is_the_default_and_the_same(folders: dict[str, Path]) -> None:
    last, whole = OnnxDecoder(folders["last"], 1), OnnxDecoder(folders["all"], 1)
    ids = gate_tokens(128, length=12).numpy()
    assert (last.last_logits_only, whole.last_logits_only) == (True, False)
    assert last.logits(ids).shape == (2, 1, 128)
    np.testing.assert_allclose(last.logits(ids), whole.logits(ids)[:, -1:], atol=1e-5)
    np.testing.assert_array_equal(last.greedy(ids, 8), whole.greedy(ids, 8))


def test_every_position_from_the_same_weights(folders: dict[str, Path]) -> None:
    ids = gate_tokens(128, length=12).numpy()
    view = OnnxDecoder(folders["last"], 1, every_position=True)
    assert not view.last_logits_only
    np.testing.assert_array_equal(view.logits(ids), OnnxDecoder(folders["all"], 1).logits(ids))
    assert all_positions(folders["all"] / "model.onnx") is None
    assert len(list(folders["last"].glob("*.onnx*"))) == 2, "one graph, one weights file"


def test_a_folder_of_links_is_opened_as_the_files_are(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a hub's cache has it: each file a link to one of another name in another folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folders["last"].iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    ids = gate_tokens(128, length=12).numpy()
    for options in ({}, {"every_position": True}, {"every_position": True, "mapped": True}, {"mapped": True}):
        expected = OnnxDecoder(folders["last"], 1, **options).logits(ids)
        np.testing.assert_array_equal(OnnxDecoder(snapshot, 1, **options).logits(ids), expected)


def test_rows_of_unequal_length_get_the_logits_of_their_own_last_token(folders: dict[str, Path]) -> None:
    last = OnnxDecoder(folders["last"], 1)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], [14, 15, 16, 17]]
    alone = np.concatenate([last.greedy([prompt], 6) for prompt in prompts])
    np.testing.assert_array_equal(last.greedy(prompts, 6), alone)


def test_padding_on_the_left_is_skipped_too(folders: dict[str, Path]) -> None:
    decoder = OnnxDecoder(folders["last"], 1)
    if decoder.lowering == "fused":
        pytest.skip("the fused operator takes padding on the right only")
    row = np.array([[12, 13, 14]])
    padded, mask = np.array([[0, 0, 12, 13, 14]]), np.array([[0, 0, 1, 1, 1]])
    found, _ = decoder.step(padded, decoder.empty(1), mask)
    np.testing.assert_allclose(found, decoder.logits(row), atol=1e-5)


def test_no_weight_is_stored_for_it(folders: dict[str, Path]) -> None:
    sizes = [(folders[name] / "model.onnx.data").stat().st_size for name in ("last", "all")]
    assert sizes[0] == sizes[1]
    added = {node.op_type for node in onnx.load(folders["last"] / "model.onnx", load_external_data=False).graph.node if PREFIX in node.name}
    assert "GatherND" in added


def test_a_graph_without_a_head_is_refused() -> None:
    ids = ir.Value(name="input_ids", shape=ir.Shape(["b", "s"]), type=ir.TensorType(ir.DataType.INT64))
    node = ir.node("Relu", [ids], outputs=[ir.Value(name="logits")])
    model = ir.Model(ir.Graph([ids], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)
    with pytest.raises(TrimlineError, match="come from Relu"):
        keep_last_position(model)
