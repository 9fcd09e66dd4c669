"""Qwen3: RMS norms over head_dim on queries and keys; heads × head_dim may differ from the hidden size."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated, query_key_norms

QWEN3 = Family(
    model_type="qwen3",
    class_prefix="Qwen3",
    linears=(*attention("attention_bias"), *gated()),
    norms=(*before(), *query_key_norms()),
    onnx_builder="Qwen3Model",
    gguf_arch="qwen3",
)
