"""Granite: Llama with four multipliers, of embeddings, attention, residual sums and logits."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

GRANITE = Family(
    model_type="granite",
    class_prefix="Granite",
    linears=(*attention("attention_bias"), *gated("mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    multiplier_key="residual_multiplier",
    gguf_arch="granite",
    onnx_builder="GraniteModel",
)
