"""OLMo 2: norms after the sublayers, and norms of queries and keys over all heads together."""

from pipeline.architecture.families.family import Axis, Family
from pipeline.architecture.families.parts import attention, behind, gated, query_key_norms

OLMO2 = Family(
    model_type="olmo2",
    class_prefix="Olmo2",
    linears=(*attention("attention_bias"), *gated()),
    norms=(
        *behind("post_attention_layernorm", "post_feedforward_layernorm"),
        *query_key_norms(axes=(Axis.QUERY, Axis.KV)),
    ),
    gguf_arch="olmo2",
)
