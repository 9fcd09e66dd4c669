"""Cutting against brute-force answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture.families import Axis, Linear
from pipeline.architecture.families.llama import LLAMA
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.plan.places import Place
from pipeline.plan.plan import Plan
from pipeline.plan.selection import select
from pipeline.rebuild.masked import open_masked
from pipeline.rebuild.surgery import Cut
from tests.pipeline.rebuild.cases import OPTIONS, Choice, absent_parts, plan_for
from tests.tiny import tiny_model


def test_kept_blocks_are_renumbered_and_absent_parts_leave_nothing(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    checkpoint = Checkpoint(source)
    smaller = Cut(checkpoint, plan_for(source, absent_parts))
    assert torch.equal(smaller["model.layers.2.self_attn.q_proj.weight"], checkpoint.tensor("model.layers.3.self_attn.q_proj.weight"))
    assert torch.equal(smaller["model.layers.0.mlp.up_proj.weight"], checkpoint.tensor("model.layers.0.mlp.up_proj.weight")[::2])
    assert torch.equal(smaller["model.layers.0.mlp.down_proj.weight"], checkpoint.tensor("model.layers.0.mlp.down_proj.weight")[:, ::2])
    gone = [name for name in smaller if name.startswith("model.layers.1.") and ("self_attn" in name or "input_layernorm" in name)]
    gone += [name for name in smaller if name.startswith("model.layers.2.") and ("mlp" in name or "post_attention" in name)]
    assert gone == []
    assert not any(name.startswith("model.layers.3.") for name in smaller)


def test_query_heads_go_with_their_kv_head(tmp_path: Path) -> None:
    source = tiny_model("qwen3", tmp_path / "dense")  # 8 query heads, 4 KV heads, head_dim 16

    def choose(choice: Choice) -> None:
        choice.kv[0] = (1, 3)

    smaller = Cut(Checkpoint(source), plan_for(source, choose))
    name = "model.layers.0.self_attn."
    q, o, k = (Checkpoint(source).tensor(f"{name}{part}_proj.weight") for part in "qok")
    heads = q.reshape(8, 16, 64)
    assert torch.equal(smaller[f"{name}q_proj.weight"], heads[[2, 3, 6, 7]].reshape(64, 64))
    assert torch.equal(smaller[f"{name}k_proj.weight"], k.reshape(4, 16, 64)[[1, 3]].reshape(32, 64))
    assert torch.equal(smaller[f"{name}o_proj.weight"], o.reshape(64, 8, 16)[:, [2, 3, 6, 7]].reshape(64, 64))


def test_fused_projections_are_cut_section_by_section(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    checkpoint = Checkpoint(source)
    gate_up = Linear("mlp.gate_up_proj", (Axis.FFN, Axis.FFN), Axis.RESIDUAL)
    fused = replace(LLAMA, linears=(*LLAMA.linears[:4], gate_up, LLAMA.linears[6]))

    def choose(choice: Choice) -> None:
        choice.ffn[0] = (3, 90)

    selection = plan_for(source, choose).selection
    rows, columns = Place(0, gate_up, "weight").indices(selection, replace(checkpoint.geometry, family=fused))
    stacked = torch.cat([checkpoint.tensor(f"model.layers.0.mlp.{part}_proj.weight") for part in ("gate", "up")])
    assert columns is None
    assert torch.equal(select(stacked, rows, columns), stacked[[3, 90, 99, 186]])


def test_masked_parameters_are_zero_exactly_where_units_go(tmp_path: Path) -> None:
    source = tiny_model("opt", tmp_path / "dense")

    def choose(choice: Choice) -> None:
        choice.ffn[1] = (0, 5)
        choice.kv[2] = ()
        choice.blocks.remove(3)

    plan: Plan = plan_for(source, choose)
    checkpoint = Checkpoint(source)
    masked = dict(open_masked(checkpoint, plan, OPTIONS, torch.float32).named_parameters())
    zero: dict[str, Any] = {name: tensor.count_nonzero().item() for name, tensor in masked.items()}
    block = "model.decoder.layers"
    assert zero[f"{block}.1.fc1.weight"] == 2 * 64
    assert zero[f"{block}.1.fc1.bias"] == 2
    assert zero[f"{block}.1.fc2.weight"] == 2 * 64
    assert zero[f"{block}.1.fc2.bias"] == 64
    for name in ("2.self_attn.out_proj", "3.self_attn.out_proj", "3.fc2"):
        assert zero[f"{block}.{name}.weight"] == zero[f"{block}.{name}.bias"] == 0
    assert torch.equal(masked[f"{block}.0.fc1.weight"], checkpoint.tensor(f"{block}.0.fc1.weight"))
