"""OLMo: Llama with LayerNorms that have no weights."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, gated

OLMO = Family(
    model_type="olmo",
    class_prefix="Olmo",
    linears=(*attention("attention_bias"), *gated()),
    norms=(),
    final_norms=(),
    gguf_arch="olmo",
    onnx_obstacle="the OLMoModel of onnxruntime-genai's builder computes RMSNorm where olmo has LayerNorm",
)
