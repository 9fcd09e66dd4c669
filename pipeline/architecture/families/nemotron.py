"""Nemotron: LayerNorm whose weights are stored less one, an FFN of two matrices, squared ReLU."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, plain

NEMOTRON = Family(
    model_type="nemotron",
    class_prefix="Nemotron",
    linears=(*attention("attention_bias"), *plain("up_proj", "down_proj", "mlp_bias")),
    norms=before(bias=True),
    norm_bias=True,
    gguf_arch="nemotron",
    norms_less_one=True,
    onnx_builder="NemotronModel",
)
