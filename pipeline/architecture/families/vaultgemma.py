"""VaultGemma: Gemma 2 with norms before the sublayers alone."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, gated, stream_norms

VAULTGEMMA = Family(
    model_type="vaultgemma",
    class_prefix="VaultGemma",
    linears=(*attention("attention_bias"), *gated()),
    norms=stream_norms(attention=("input_layernorm",), ffn=("pre_feedforward_layernorm",)),
    defaults={"tie_word_embeddings": True},
    fixed_stream="its embeddings are scaled by the square root of the hidden size",
    activation_key="hidden_activation",
    gguf_arch="gemma",
    norms_less_one=True,
)
