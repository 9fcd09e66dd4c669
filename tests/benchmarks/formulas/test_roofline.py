from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.formulas import roofline
from benchmarks.formulas.roofline import Call, Ceilings, Operator, Widths, operators
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from tests.tiny import TINY_FAMILIES, tiny_model

HIDDEN, HEADS, GROUPS, WIDTH, FFN, VOCAB = 64, 4, 2, 16, 96, 128


def llama(**changes: object) -> Geometry:
    return Geometry.from_config(
        {
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
            "head_dim": WIDTH,
            "intermediate_size": FFN,
            "num_hidden_layers": 1,
            "vocab_size": VOCAB,
            "tie_word_embeddings": True,
        }
        | changes
    )


def by_name(geometry: Geometry, call: Call, widths: Widths | None = None) -> dict[str, Operator]:
    return {op.name.removeprefix("0."): op for op in operators(geometry, call, widths)}


def test_every_operator_against_a_hand_count():
    """Three new tokens after five, a batch of two: six rows; pairs 2·(3·5 + 1+2+3) = 42."""
    found = by_name(llama(), Call(tokens=3, past=5, batch=2, logits_positions=1))
    hand = {
        "embedding": (6 * 64 * 8, 0),
        "input_layernorm": (2 * 6 * 64 * 4, 0),
        "post_attention_layernorm": (2 * 6 * 64 * 4, 0),
        "self_attn.q_proj": ((64 * 64 + 6 * 128) * 4, 2 * 6 * 64 * 64),
        "self_attn.k_proj": ((32 * 64 + 6 * 96) * 4, 2 * 6 * 32 * 64),
        "self_attn.v_proj": ((32 * 64 + 6 * 96) * 4, 2 * 6 * 32 * 64),
        "self_attn.o_proj": ((64 * 64 + 6 * 128) * 4, 2 * 6 * 64 * 64),
        "rotary": (2 * 6 * (64 + 32) * 4, 0),
        "cache_write": (6 * 2 * 32 * 4, 0),
        "attention": ((2 * 6 * 64 + 2 * 32 * 2 * 8) * 4, 4 * 42 * 64),
        "attention_residual": (3 * 6 * 64 * 4, 0),
        "mlp.gate_proj": ((96 * 64 + 6 * 160) * 4, 2 * 6 * 96 * 64),
        "mlp.up_proj": ((96 * 64 + 6 * 160) * 4, 2 * 6 * 96 * 64),
        "mlp.down_proj": ((96 * 64 + 6 * 160) * 4, 2 * 6 * 96 * 64),
        "activation": (3 * 6 * 96 * 4, 0),
        "ffn_residual": (3 * 6 * 64 * 4, 0),
        "model.norm": (2 * 6 * 64 * 4, 0),
        "lm_head": ((128 * 64 + 2 * (64 + 128)) * 4, 2 * 2 * 128 * 64),
    }
    assert {name: (op.bytes, op.flops) for name, op in found.items()} == hand


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_projections_are_the_decoder_parameters(family: str, tmp_path: Path):
    geometry = Checkpoint(tiny_model(family, tmp_path)).geometry
    names = {linear.name for linear in geometry.family.linears}
    work = operators(geometry, Call(tokens=7, batch=3))
    flops = sum(op.flops for op in work if op.name.partition(".")[2] in names)
    assert flops == 2 * 21 * geometry.decoder_parameters()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_single_token_costs_what_the_geometry_says(family: str, tmp_path: Path):
    geometry = Checkpoint(tiny_model(family, tmp_path)).geometry
    flops = roofline.flops(operators(geometry, Call(tokens=1, past=9, logits_positions=0)))
    assert flops == geometry.decoder_flops(context=10)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_weight_bytes_leave_out_looked_up_tables_only(family: str, tmp_path: Path):
    checkpoint = Checkpoint(tiny_model(family, tmp_path))
    looked_up = ("embed_positions",) if checkpoint.geometry.tied else ("embed_positions", "embed_tokens")
    read = sum(tensor.numel() for name, tensor in checkpoint.tensors() if not any(table in name for table in looked_up))
    assert roofline.weight_bytes(checkpoint.geometry) == 4 * read


def test_absent_sublayers_cost_nothing():
    geometry = llama().with_blocks((BlockShape(ffn=0, kv_groups=2), BlockShape(ffn=96, kv_groups=0)))
    names = {op.name for op in operators(geometry, Call(tokens=4))}
    assert "0.self_attn.q_proj" in names
    assert "1.mlp.up_proj" in names
    assert not any(name.startswith(("0.mlp", "0.ffn", "0.activation", "1.self_attn", "1.attention", "1.cache")) for name in names)


def test_an_ungated_ffn_reads_one_matrix(tmp_path: Path):
    geometry = Checkpoint(tiny_model("opt", tmp_path)).geometry
    found = by_name(geometry, Call(tokens=2))
    assert found["activation"].bytes == 2 * 2 * 96 * 4
    assert "rotary" not in found
    assert "positions" in found


def test_norms_of_heads_run_once_per_head(tmp_path: Path):
    found = by_name(Checkpoint(tiny_model("qwen3", tmp_path)).geometry, Call(tokens=1))
    assert found["self_attn.q_norm"].bytes == 2 * 8 * 16 * 4
    assert found["self_attn.k_norm"].bytes == 2 * 4 * 16 * 4


def test_quantised_weights_are_fewer_bytes_and_no_fewer_flops():
    full, small = by_name(llama(), Call(1)), by_name(llama(), Call(1), Widths(4, 0.5))
    assert full["lm_head"].bytes - small["lm_head"].bytes == 3.5 * 128 * 64
    assert full["lm_head"].flops == small["lm_head"].flops


def test_the_longer_of_moving_and_multiplying_counts():
    work = [Operator("moves", bytes=100, flops=10), Operator("multiplies", bytes=10, flops=1000)]
    assert roofline.time_bound(work, Ceilings(bandwidth=10, rate=100)) == 10 + 10


def test_allowed_speed_up_is_the_ratio_of_bounds_and_grows_with_what_is_removed():
    machine = Ceilings(bandwidth=1e9, rate=1e11)
    dense, half, none = (operators(llama(intermediate_size=n), Call(1, 8)) for n in (96, 48, 1))
    gain = roofline.allowed_speedup(dense, half, machine)
    assert gain == roofline.time_bound(dense, machine) / roofline.time_bound(half, machine)
    assert 1 < gain < roofline.allowed_speedup(dense, none, machine)


def test_logits_of_the_last_position_spare_the_head():
    everywhere, last = (by_name(llama(), Call(10, logits_positions=n))["lm_head"] for n in (10, 1))
    assert everywhere.flops == 10 * last.flops


def test_mbu_and_mfu_are_their_formulas():
    geometry, call, machine = llama(), Call(1, past=10), Ceilings(bandwidth=2e6, rate=3e6)
    read = roofline.weight_bytes(geometry) + 10 * geometry.kv_bytes_per_token(4)
    assert roofline.mbu(geometry, call, 0.5, machine) == read / 0.5 / 2e6
    assert roofline.mfu(geometry, call, 0.5, machine) == roofline.flops(operators(geometry, call)) / 0.5 / 3e6
