"""A training that memory does not hold is refused before anything of it is read, and the bar is what it holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import WEIGHTS_SHARE
from pipeline.recover.budget import demand_memory, held_bytes
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from tests.end_to_end.scenario import assert_refused, prose, trimline
from tests.pipeline.recover.test_stage import FULL, LORA, OPTIONS
from tests.tiny import tiny_model

WAYS = {
    "lora": (LORA, 4),
    "full": (FULL | {"embeddings": "trained"}, 16),
    "lora taught in bf16": (LORA | {"loss": "distillation"}, 4 + 2),
    "full taught in bf16": (FULL | {"loss": "distillation", "embeddings": "trained"}, 16 + 2),
    "full, shared by four": (FULL | {"sharded": True, "embeddings": "trained"}, 4 + 12 // 4),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return Checkpoint(tiny_model("llama", tmp_path_factory.mktemp("budget") / "model"))


@pytest.mark.parametrize("way", WAYS)
def test_what_a_process_holds_per_weight(way, checkpoint):
    values, bytes_each = WAYS[way]
    recipe = RecoverSlice(**values)
    teacher = checkpoint if recipe.loss == "distillation" else None
    weights = sum(tensor.numel() for _, tensor in checkpoint.tensors())
    assert held_bytes(checkpoint, teacher, recipe, torch.bfloat16, 4) == bytes_each * weights


def test_a_frozen_table_has_no_gradient_and_no_moments(checkpoint):
    table = checkpoint.tensor("model.embed_tokens.weight").numel()
    assert checkpoint.geometry.tied
    held = [held_bytes(checkpoint, None, RecoverSlice(**FULL | {"embeddings": how}), torch.float32, 1) for how in ("trained", "auto")]
    assert held[0] - held[1] == 12 * table


def test_the_bar_is_what_weights_may_take_and_processes_beside_count(checkpoint, monkeypatch):
    recipe = RecoverSlice(**FULL)
    held = held_bytes(checkpoint, None, recipe, torch.float32, 1)
    enough = int(held / WEIGHTS_SHARE) + 4
    demand_memory(checkpoint, None, recipe, replace(OPTIONS, memory=enough))
    with pytest.raises(TrimlineError, match=r"This training holds .* GiB.*recover\.kind: lora or several devices"):
        demand_memory(checkpoint, None, recipe, replace(OPTIONS, memory=int(0.99 * enough)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(TrimlineError):
        demand_memory(checkpoint, None, recipe, replace(OPTIONS, memory=enough))


def test_the_remedy_names_only_what_would_take_less(checkpoint):
    with pytest.raises(TrimlineError) as refused:
        demand_memory(checkpoint, None, RecoverSlice(**LORA), replace(OPTIONS, memory=1000))
    assert refused.value.remedy == "Give --memory more, or a machine that has it."


def test_the_stage_refuses_before_it_reads_anything(tmp_path):
    pruned = tiny_model("llama", tmp_path / "model")
    with pytest.raises(TrimlineError, match="This training holds"):
        recover(
            pruned,
            pruned,
            tmp_path / "no texts",
            RecoverSlice(**LORA),
            replace(OPTIONS, memory=1000),
            tmp_path,
            tmp_path / "work",
            Events(),
        )


def test_the_verb_refuses_and_leaves_nothing(tmp_path):
    pruned = tiny_model("llama", tmp_path / "model")
    for seed, part in enumerate(("calibration", "evaluation"), 1):
        (tmp_path / f"{part}.txt").write_text(prose(seed, 30), encoding="utf-8")
    recipe = {
        "model": {"source": str(pruned)},
        "text": {part: {"source": str(tmp_path / f"{part}.txt")} for part in ("calibration", "evaluation")},
        "prune": {"steps": [{"method": "magnitude", "budget": {"ffn": {"remove": 0.3}}}]},
        "recover": FULL,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    called = trimline("recover", str(tmp_path / "recipe.yaml"), str(pruned), "--output", str(tmp_path / "out"), "--memory", "100KB")
    assert_refused(called, "This training holds")
    assert not (tmp_path / "out").exists()
