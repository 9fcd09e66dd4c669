"""Jais 2: biases everywhere, LayerNorm, an FFN of two matrices and squared ReLU."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, plain

JAIS2 = Family(
    model_type="jais2",
    class_prefix="Jais2",
    linears=(*attention("attention_bias"), *plain("up_proj", "down_proj", "mlp_bias")),
    norms=before(bias=True),
    norm_bias=True,
    defaults={"attention_bias": True, "mlp_bias": True},
    gguf_arch="jais2",
)
