"""A config that states positions without an end costs no tables of them: an export promises a bounded number, and says so."""

from __future__ import annotations

from pathlib import Path

import gguf
import onnx
import pytest

from exporters import positions
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.onnx.stage import export
from exporters.positions import promised
from exporters.recipe import ExportSlice
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from tests.exporters.models import OPTIONS, stock

BOUND = 512


def test_no_model_that_there_is_is_cut_short() -> None:
    assert promised(131_072) == 131_072
    assert promised(1_010_000) == 1_010_000  # the longest among the families that are known
    assert promised(10**9) == positions.MOST_POSITIONS == 2**20


def test_every_export_promises_the_same_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    monkeypatch.setattr(positions, "MOST_POSITIONS", BOUND)
    checkpoint, said = stock("llama", tmp_path, max_position_embeddings=10**9), list[Event]()
    for name in ("onnx", "gguf"):
        (tmp_path / name).mkdir()
    export(checkpoint, ExportSlice(lowering="fused"), OPTIONS, tmp_path / "onnx", Events(said.append))
    export_gguf(checkpoint, GgufSlice(), OPTIONS, tmp_path / "gguf", Events(said.append))
    notes = [event.text for event in said if "the config states 1,000,000,000 positions; an export promises at most 512" in event.text]
    assert len(notes) == 2
    config = read_json(tmp_path / "onnx" / "genai_config.json")
    assert (config["model"]["context_length"], config["search"]["max_length"]) == (BOUND, BOUND)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    assert {tensor.dims[0] for tensor in graph.initializer if tensor.name in ("cos_cache", "sin_cache")} == {BOUND}
    stated = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").get_field("llama.context_length")
    assert stated is not None
    assert stated.contents() == BOUND
