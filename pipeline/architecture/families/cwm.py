"""Code World Model: Llama with blocks that attend to a window."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

CWM = Family(
    model_type="cwm",
    class_prefix="Cwm",
    linears=(*attention(), *gated("mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    gguf_arch="llama",
    onnx_builder="LlamaModel",
)
