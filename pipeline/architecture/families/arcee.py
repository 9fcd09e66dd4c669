"""Arcee: Llama with an FFN of two matrices and squared ReLU."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, plain

ARCEE = Family(
    model_type="arcee",
    class_prefix="Arcee",
    linears=(*attention("attention_bias"), *plain("up_proj", "down_proj", "mlp_bias")),
    norms=before(),
    norm_eps="rms_norm_eps",
    gguf_arch="arcee",
)
