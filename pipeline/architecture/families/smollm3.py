"""SmolLM3: Llama without rotary embedding in every fourth block."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

SMOLLM3 = Family(
    model_type="smollm3",
    class_prefix="SmolLM3",
    linears=(*attention("attention_bias"), *gated("mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    defaults={"tie_word_embeddings": True},
    gguf_arch="smollm3",
    onnx_builder="SmolLM3Model",
)
