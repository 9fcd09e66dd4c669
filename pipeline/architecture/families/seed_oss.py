"""Seed-OSS: Llama with biases on q, k and v, and a key for that of the output projection."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

SEED_OSS = Family(
    model_type="seed_oss",
    class_prefix="SeedOss",
    linears=(*attention("attention_bias", "attention_out_bias"), *gated("mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    defaults={"attention_bias": True},
    gguf_arch="seed_oss",
    onnx_builder="LlamaModel",
)
