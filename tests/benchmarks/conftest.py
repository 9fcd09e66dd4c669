"""Tiny exported models: what the export stage writes, without its gates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporters.folder import CONFIG, EXPORT
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``dense`` and ``pruned`` (half the FFN), a random Llama each."""
    pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    root = tmp_path_factory.mktemp("exported")
    return {name: _export(root, name, ffn) for name, ffn in (("dense", 192), ("pruned", 96))}


def _export(root: Path, name: str, ffn: int) -> Path:
    from exporters.onnx.files import save_graph
    from exporters.onnx.lowering.fused import lower_fused
    from exporters.onnx.running.genai import write_genai_config

    checkpoint, out = tiny_model("llama", root / f"{name} checkpoint", intermediate_size=ffn), root / name
    out.mkdir()
    save_graph(lower_fused(Checkpoint(checkpoint), "fp32", Events()), out, "fused")
    write_genai_config(Checkpoint(checkpoint), "fused", out)
    shutil.copyfile(checkpoint / "config.json", out / CONFIG)
    (out / EXPORT).write_text(json.dumps({"lowering": "fused", "precision": "fp32", "logits": "all"}), encoding="utf-8")
    return out
