"""Command R: attention and FFN beside each other behind one LayerNorm, scaled logits."""

from pipeline.architecture.families.family import Axis, Family, Norm
from pipeline.architecture.families.parts import attention, gated

COHERE = Family(
    model_type="cohere",
    class_prefix="Cohere",
    linears=(*attention("attention_bias"), *gated()),
    norms=(Norm("input_layernorm", Axis.RESIDUAL, None),),
    defaults={"tie_word_embeddings": True, "use_qk_norm": False},
    requires={"use_qk_norm": False},
    gguf_arch="command-r",
    rotates_neighbours=True,
)
