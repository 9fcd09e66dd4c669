"""Persimmon: q, k and v in one projection, head by head; LayerNorms of queries and keys; biases everywhere."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.parts import before, plain, query_key_norms

PERSIMMON = Family(
    model_type="persimmon",
    class_prefix="Persimmon",
    final_norms=("model.final_layernorm",),
    norm_bias=True,
    kv_heads_key=None,
    linears=(
        Linear("self_attn.query_key_value", (Axis.GROUPED,), Axis.RESIDUAL, bias=True),
        Linear("self_attn.dense", (Axis.RESIDUAL,), Axis.QUERY, bias=True),
        *plain("dense_h_to_4h", "dense_4h_to_h", True),
    ),
    norms=(*before(bias=True), *query_key_norms("q_layernorm", "k_layernorm", bias=True)),
    defaults={"qk_layernorm": True},
    requires={"qk_layernorm": True},
    square_attention=True,
)
