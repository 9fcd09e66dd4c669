"""Command R7B and A: Command R with a window and a rotary embedding in three blocks of four."""

from pipeline.architecture.families.family import Axis, Family, Norm
from pipeline.architecture.families.parts import attention, gated

COHERE2 = Family(
    model_type="cohere2",
    class_prefix="Cohere2",
    linears=(*attention("attention_bias"), *gated()),
    norms=(Norm("input_layernorm", Axis.RESIDUAL, None),),
    defaults={"tie_word_embeddings": True},
    gguf_arch="cohere2",
    rotates_neighbours=True,
)
