"""Biases that the dense model has not: both lowerings compute them, by the gate's own measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.exporters.models import FFN, OPTIONS
from tests.tiny import tiny_model

READERS = ("mlp.down_proj", "self_attn.o_proj")


def with_biases(family: str, folder: Path, profile: Profile) -> Path:
    """A checkpoint whose readers have biases of about a tenth, half of its FFN gone, blocks alike where the profile wants it."""
    dense = Checkpoint(tiny_model(family, folder / "dense"))
    described, everything = dense.geometry.family, Selection.everything(dense.geometry)
    widths = FFN if profile is Profile.FREE else (48,) * 4
    selection = Selection(everything.blocks, tuple(tuple(range(n)) for n in widths), everything.kv_groups)
    names = [described.module(block, reader) for block in range(4) for reader in READERS if widths[block] or "attn" in reader]
    updates = {f"{name}.bias": 0.1 * torch.randn(64) for name in names}
    for name in ("plan", "out"):
        (folder / name).mkdir()
    Plan(described, selection, (), updates, biases=READERS).write(folder / "plan")
    rebuild(dense.folder, folder / "plan", RebuildSlice(profile=profile), OPTIONS, folder / "out", Events())
    return folder / "out"


@pytest.mark.parametrize(
    ("lowering", "family", "profile"),
    [
        ("fused", "llama", Profile.UNIFORM),
        ("fused", "llama", Profile.DECILM),
        ("fused", "mistral", Profile.FREE),
        ("fused", "qwen2", Profile.FREE),
        ("fused", "qwen3", Profile.FREE),
        pytest.param("portable", "phi3", Profile.FREE, marks=pytest.mark.slow),
    ],
)
def test_added_biases_pass_the_gate(lowering: Literal["fused", "portable"], family: str, profile: Profile, tmp_path: Path) -> None:
    if lowering == "fused":
        pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    checkpoint, out = with_biases(family, tmp_path, profile), tmp_path / "onnx"
    out.mkdir()
    export(checkpoint, ExportSlice(lowering=lowering), OPTIONS, out, Events())
    gate = json.loads((out / "gate.json").read_text())
    assert len(gate["checks"]) == 5
    assert all(check["passed"] and check["difference"] < 1e-4 for check in gate["checks"].values())


def test_the_biases_matter(tmp_path: Path) -> None:
    folder = with_biases("mistral", tmp_path, Profile.FREE)
    model, ids = load_model(folder, dtype=torch.float32), torch.arange(4, 20)[None]
    with torch.no_grad():
        before = model(ids).logits
        model.get_submodule("model.layers.0.self_attn.o_proj").bias.zero_()
        assert (model(ids).logits - before).abs().max() > 1e-2
