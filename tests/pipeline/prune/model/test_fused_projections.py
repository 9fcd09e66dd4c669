"""Fused projections (Phi-3) are scored as the same projections side by side (Mistral) are: same tensors, same plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.sources.recipe import CalibrationWindows
from tests.tiny import tiny_model

TOKENS = torch.randint(4, 100, (3, 24), generator=torch.Generator().manual_seed(2))
STEPS: dict[str, dict[str, Any]] = {
    "cfsp": {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}},
    "cfsp, normalised": {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "options": {"score": "normalised"}},
    "attention": {"method": "cfsp_extended", "budget": {"kv_group": {"remove": 0.5}}, "allocation": "global"},
    "magnitude": {"method": "magnitude", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}}},
    "blocks": {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
}


def fused(folder: Path, mistral: Path) -> Path:
    """The model in ``mistral`` as a Phi-3."""
    checkpoint = Checkpoint(mistral)
    tensors = dict(checkpoint.tensors())
    for block in range(len(checkpoint.geometry.blocks)):
        for name, parts in (("self_attn.qkv_proj", ("q", "k", "v")), ("mlp.gate_up_proj", ("gate", "up"))):
            path = f"model.layers.{block}.{name.split('.')[0]}."
            sections = [tensors.pop(f"{path}{part}_proj.weight") for part in parts]
            tensors[f"model.layers.{block}.{name}.weight"] = torch.cat(sections)
    config = checkpoint.config | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    folder.mkdir()
    write_checkpoint(folder, config, tensors)
    return folder


def planned(folder: Path, step: dict[str, Any]) -> Plan:
    checkpoint = Checkpoint(folder)
    recipe = PruneSlice(calibration=CalibrationWindows(windows=3, window=24), steps=(PruneStep(round_to=8, **step),))
    return make_plan(ShrinkingModel(load_model(folder, dtype=torch.float32), checkpoint), TOKENS, recipe, Events())


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_same_scores_and_same_units_as_unfused(tmp_path: Path, step: dict[str, Any]) -> None:
    apart = tiny_model("mistral", tmp_path / "mistral", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    together = fused(tmp_path / "phi3", apart)
    with torch.inference_mode():
        logits = [load_model(folder, dtype=torch.float32)(TOKENS).logits for folder in (apart, together)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    expected, plan = planned(apart, step), planned(together, step)
    assert plan.selection == expected.selection
    assert plan.scores.keys() == expected.scores.keys()
    for name, score in plan.scores.items():
        torch.testing.assert_close(score, expected.scores[name], rtol=1e-4, atol=1e-6)
