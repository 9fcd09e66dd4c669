"""OPT: learned positions, LayerNorm with biases, a plain two-matrix FFN, as many KV heads as query heads."""

from pipeline.architecture.families.family import Axis, Family, Linear, Norm, Sublayer

OPT = Family(
    model_type="opt",
    class_prefix="OPT",
    blocks="model.decoder.layers",
    embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    final_norms=("model.decoder.final_layer_norm",),
    norm_bias=True,
    ffn=None,
    ffn_key="ffn_dim",
    kv_heads_key=None,
    linears=(
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL, bias="enable_bias"),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL, bias="enable_bias"),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL, bias="enable_bias"),
        Linear("self_attn.out_proj", (Axis.RESIDUAL,), Axis.QUERY, bias="enable_bias"),
        Linear("fc1", (Axis.FFN,), Axis.RESIDUAL, bias="enable_bias"),
        Linear("fc2", (Axis.RESIDUAL,), Axis.FFN, bias="enable_bias"),
    ),
    norms=(
        Norm("self_attn_layer_norm", Axis.RESIDUAL, Sublayer.ATTENTION, bias=True),
        Norm("final_layer_norm", Axis.RESIDUAL, Sublayer.FFN, bias=True),
    ),
    position_offset=2,
    defaults={"tie_word_embeddings": True, "enable_bias": True, "do_layer_norm_before": True},
    requires={"do_layer_norm_before": True},  # OPT-350m normalises after, and projects its embeddings
    square_attention=True,
)
