"""Gemma: scaled embeddings, weights of norms stored less one, GELU."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

GEMMA = Family(
    model_type="gemma",
    class_prefix="Gemma",
    linears=(*attention("attention_bias"), *gated()),
    norms=before(),
    defaults={"tie_word_embeddings": True},
    fixed_stream="its embeddings are scaled by the square root of the hidden size",
    gguf_arch="gemma",
    norms_less_one=True,
    onnx_builder="GemmaModel",
)
