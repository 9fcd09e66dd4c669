"""Sizes read from configs: counted parameters are the parameters that checkpoints hold, whatever their shape."""

from __future__ import annotations

import pytest

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from tests.pipeline.rebuild.cases import absent_parts, anything, fewer_blocks, rebuilt_tiny, same_width
from tests.tiny import TINY_FAMILIES, tiny_model

VARIANTS = (
    *((family, {}) for family in TINY_FAMILIES),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 8}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    ("opt", {"enable_bias": False}),
    ("opt", {"tie_word_embeddings": False}),
)
BASE = {
    **{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 128},
}


def assert_counts(folder) -> None:
    checkpoint = Checkpoint(folder)
    geometry = checkpoint.geometry
    assert dict(geometry.tensors()) == {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors()}
    assert geometry.total_parameters() == sum(tensor.numel() for _, tensor in checkpoint.tensors())
    linears = [
        f"{geometry.family.module(i, ln.name)}.weight" for i, block in enumerate(geometry.blocks) for ln, _ in geometry.linears(block)
    ]
    assert geometry.decoder_parameters() == sum(checkpoint.tensor(name).numel() for name in linears)


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_dense_models(family, overrides, tmp_path):
    assert_counts(tiny_model(family, tmp_path, **overrides))


@pytest.mark.parametrize(
    ("family", "choose", "profile"),
    [
        ("llama", absent_parts, Profile.DECILM),
        ("mistral", absent_parts, Profile.DECILM),
        ("qwen2", absent_parts, Profile.DECILM),
        *((family, anything, Profile.FREE) for family in TINY_FAMILIES),
        ("llama", same_width, Profile.UNIFORM),
        ("qwen3", fewer_blocks, Profile.UNIFORM),
    ],
)
def test_rebuilt_models(family, choose, profile, tmp_path):
    assert_counts(rebuilt_tiny(tmp_path, family, choose, profile))


def test_flops_and_cache():
    geometry = Geometry.from_config(BASE)
    block = geometry.blocks[0]
    linear = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64)
    assert geometry.block_flops(block, context=10) == linear + 4 * 10 * 64  # scores and their use: 2 × 2 × context × heads × head_dim
    assert geometry.decoder_flops(10) == 3 * geometry.block_flops(block, 10)
    assert geometry.kv_bytes_per_token(2) == 3 * 2 * 32 * 2
    assert geometry.block_flops(BlockShape(96, 0), 10) == 2 * 3 * 96 * 64


def test_units_and_uniformity():
    geometry = Geometry.from_config(BASE)
    assert [geometry.blocks[0].units(sublayer) for sublayer in (Sublayer.FFN, Sublayer.ATTENTION)] == [96, 2]
    assert geometry.is_uniform
    assert not geometry.with_blocks((BlockShape(96, 2), BlockShape(95, 2))).is_uniform
    assert geometry.queries_per_group == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2.*llama"),
        ({"model_type": None}, "not supported"),
        ({"hidden_size": 0}, "hidden_size.*0"),
        ({"hidden_size": "64"}, "hidden_size.*'64'"),
        ({"hidden_size": True}, "hidden_size.*True"),
        ({"hidden_size": 2, "num_attention_heads": 4}, "head_dim.*0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads.*3"),
        ({"vocab_size": None}, "vocab_size.*None"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers.*more than any"),
        ({"vocab_size": 2**40}, "vocab_size.*more than any"),
        ({"block_configs": []}, "block_configs"),
        ({"block_configs": {}}, "block_configs"),
        ({"block_configs": [{"attention": {"no_op": False, "n_heads_in_group": 0}, "ffn": {"no_op": True}}]}, "block_configs"),
        ({"block_configs": [{"attention": {"no_op": True}, "ffn": {"no_op": False, "intermediate_size": -5}}]}, "block_configs"),
        ({"block_configs": [{"attention": {"no_op": True}, "ffn": {"no_op": False}}]}, "block_configs"),
        ({"model_type": "opt", "ffn_dim": 96, "max_position_embeddings": 64, "do_layer_norm_before": False}, "do_layer_norm_before"),
    ],
)
def test_configs_that_cannot_be(change, named):
    with pytest.raises(TrimlineError, match=named):
        Geometry.from_config(BASE | change)
