"""Mistral: Llama's tensors without biases, with an optional sliding window."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

MISTRAL = Family(
    model_type="mistral",
    class_prefix="Mistral",
    linears=(*attention(), *gated()),
    norms=before(),
    decilm="llama",
    norm_eps="rms_norm_eps",
    onnx_builder="MistralModel",
    gguf_arch="llama",
)
