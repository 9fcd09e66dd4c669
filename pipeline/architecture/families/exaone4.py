"""EXAONE 4: norms after the sublayers and of queries and keys; blocks that attend to everything have no rotary embedding."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, behind, gated, query_key_norms

EXAONE4 = Family(
    model_type="exaone4",
    class_prefix="Exaone4",
    linears=(*attention(), *gated()),
    norms=(
        *behind("post_attention_layernorm", "post_feedforward_layernorm"),
        *query_key_norms(),
    ),
    gguf_arch="exaone4",
)
