import hashlib
import json
from pathlib import Path

import onnx
import pytest

from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.events import Event, Events
from tests.exporters.models import OPTIONS, stock, uneven

PORTABLE = ExportSlice(lowering="portable")


def exported(checkpoint: Path, out: Path, recipe: ExportSlice = PORTABLE, events: Events | None = None) -> Path:
    out.mkdir(parents=True)
    export(checkpoint, recipe, OPTIONS, out, events or Events())
    return out


def passed(folder: Path) -> bool:
    gate = json.loads((folder / "gate.json").read_text())
    checks = [*gate["checks"].values(), *([gate["genai"]] if gate["genai"]["run"] else [])]
    return len(gate["checks"]) == 5 and all(check["passed"] and check["difference"] < 1e-4 for check in checks)


def test_uneven_opt_by_default(tmp_path):
    seen: list[Event] = []
    out = exported(uneven("opt", tmp_path, (1, 0, 4, 3)), tmp_path / "out", ExportSlice(), Events(seen.append))
    assert passed(out)
    assert any("portable lowering, because" in event.text for event in seen)
    graph = onnx.load(out / "model.onnx").graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert [value.name for value in graph.input][:5] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert "past_key_values.1.key" not in {value.name for value in graph.input}
    assert OnnxDecoder(out, 1).lowering == "portable"


@pytest.mark.slow
def test_sliding_window_and_same_bytes_twice(tmp_path):
    checkpoint = stock("mistral", tmp_path, sliding_window=16)
    digests = []
    for name in ("first", "a/second/place"):
        out = exported(checkpoint, tmp_path / name)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
    assert passed(out)
    assert digests[0] == digests[1]
    assert str(tmp_path).encode() not in (tmp_path / "first/model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt", "phi3"])
def test_stock_families(family, tmp_path):
    assert passed(exported(stock(family, tmp_path), tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_uneven_families(family, tmp_path):
    groups = (2, 0, 4, 3) if family == "qwen3" else (1, 0, 2, 1)
    assert passed(exported(uneven(family, tmp_path, groups), tmp_path / "out"))


@pytest.mark.slow
def test_full_and_sliding_attention_side_by_side(tmp_path):
    checkpoint = stock("qwen2", tmp_path, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    assert passed(exported(checkpoint, tmp_path / "out", ExportSlice()))
