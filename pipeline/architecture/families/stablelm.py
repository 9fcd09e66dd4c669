"""StableLM: LayerNorm, and a rotary embedding of a quarter of each head."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gated

STABLELM = Family(
    model_type="stablelm",
    class_prefix="StableLm",
    linears=(*attention("use_qkv_bias", False), *gated()),
    norms=before(bias=True),
    norm_bias=True,
    square_attention=True,
    defaults={"qk_layernorm": False, "use_parallel_residual": False},
    requires={"qk_layernorm": False, "use_parallel_residual": False},
    gguf_arch="stablelm",
)
