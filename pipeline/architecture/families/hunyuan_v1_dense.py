"""Hunyuan, dense: Llama with norms of queries and keys."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated, query_key_norms

HUNYUAN_V1_DENSE = Family(
    model_type="hunyuan_v1_dense",
    class_prefix="HunYuanDenseV1",
    linears=(*attention("attention_bias"), *gated()),
    norms=(*before(), *query_key_norms("query_layernorm", "key_layernorm")),
    gguf_arch="hunyuan-dense",
    onnx_builder="HunyuanDenseV1Model",
)
