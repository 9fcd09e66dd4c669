"""ERNIE 4.5: Llama with a rotary embedding that pairs neighbouring channels."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

ERNIE4_5 = Family(
    model_type="ernie4_5",
    class_prefix="Ernie4_5",
    linears=(*attention("use_bias"), *gated("use_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    defaults={"tie_word_embeddings": True},
    gguf_arch="ernie4_5",
    rotates_neighbours=True,
    onnx_builder="ErnieModel",
)
