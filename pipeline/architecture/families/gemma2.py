"""Gemma 2: Gemma with norms before and after both sublayers, soft caps, and a window in every other block."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, behind, gated, stream_norms

GEMMA2 = Family(
    model_type="gemma2",
    class_prefix="Gemma2",
    linears=(*attention("attention_bias"), *gated()),
    norms=(
        *stream_norms(attention=("input_layernorm",), ffn=("pre_feedforward_layernorm",)),
        *behind("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    defaults={"tie_word_embeddings": True},
    fixed_stream="its embeddings are scaled by the square root of the hidden size",
    activation_key="hidden_activation",
    gguf_arch="gemma2",
    norms_less_one=True,
    onnx_builder="Gemma2Model",
)
