"""Llama 2 and 3, SmolLM, TinyLlama, and everything else that calls itself ``llama``."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

LLAMA = Family(
    model_type="llama",
    class_prefix="Llama",
    linears=(*attention("attention_bias"), *gated("mlp_bias")),
    norms=before(),
    decilm="llama",
    norm_eps="rms_norm_eps",
    onnx_builder="LlamaModel",
    gguf_arch="llama",
)
