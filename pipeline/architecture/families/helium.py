"""Helium: Llama with a rotary embedding that pairs neighbouring channels, and an output projection as wide as the stream."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

HELIUM = Family(
    model_type="helium",
    class_prefix="Helium",
    linears=(*attention("attention_bias", False), *gated("mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    square_attention=True,
    gguf_arch="llama",
    rotates_neighbours=True,
    onnx_builder="ErnieModel",
)
