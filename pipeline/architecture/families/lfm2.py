"""LFM2: short convolutions among blocks with attention; norms of queries and keys; an FFN that may be narrower than its key says."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.kinds import ATTENTION, Adjusted, Indexed, KindCost, Kinds, Listed
from pipeline.architecture.families.mixers import convolution, projection
from pipeline.architecture.families.parts import attention, query_key_norms, stream_norms

CONV, H = "conv", Axis.RESIDUAL
BIAS = "conv_bias"

LFM2 = Family(
    model_type="lfm2",
    class_prefix="Lfm2",
    kinds=Kinds(
        mixers=Listed("layer_types", {"conv": CONV, "full_attention": ATTENTION}, Indexed("full_attn_idxs", ATTENTION, CONV)),
        costs={CONV: KindCost(state=("hidden_size * conv_L_cache",))},
    ),
    linears=(
        *attention(output="out_proj"),
        Linear("feed_forward.w1", (Axis.FFN,), H),
        Linear("feed_forward.w3", (Axis.FFN,), H),
        Linear("feed_forward.w2", (H,), Axis.FFN),
    ),
    norms=(*stream_norms(attention=("operator_norm",), ffn=("ffn_norm",)), *query_key_norms("q_layernorm", "k_layernorm")),
    carried=(
        *projection("conv.in_proj", "3 * hidden_size", H, CONV, bias=BIAS),
        *convolution("conv.conv", "hidden_size", "conv_L_cache", CONV, bias=BIAS),
        *projection("conv.out_proj", H, "hidden_size", CONV, adds=True, bias=BIAS),
    ),
    ffn="feed_forward",
    final_norms=("model.embedding_norm",),
    adjusted=Adjusted("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", (True, 1.0, 256)),
    old_keys={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
    defaults={"tie_word_embeddings": True, "conv_L_cache": 3},
)
