"""Qwen2 and Qwen2.5: biases on q, k and v, none on the output projection."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

QWEN2 = Family(
    model_type="qwen2",
    class_prefix="Qwen2",
    linears=(*attention(True, False), *gated()),
    norms=before(),
    decilm="qkv_bias",
    norm_eps="rms_norm_eps",
    onnx_builder="QwenModel",
    gguf_arch="qwen2",
)
