"""HyperCLOVA X: Granite with norms after the sublayers too."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, gated, stream_norms

HYPERCLOVAX = Family(
    model_type="hyperclovax",
    class_prefix="HyperCLOVAX",
    linears=(*attention("attention_bias"), *gated("mlp_bias")),
    norms=stream_norms(attention=("input_layernorm", "post_norm1"), ffn=("post_attention_layernorm", "post_norm2")),
    norm_eps="rms_norm_eps",
    defaults={"use_post_norm": True},
    requires={"use_post_norm": True},
)
