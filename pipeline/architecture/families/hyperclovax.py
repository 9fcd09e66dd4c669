"""HyperCLOVA X: Granite with norms after the sublayers too."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, behind, gated

HYPERCLOVAX = Family(
    model_type="hyperclovax",
    class_prefix="HyperCLOVAX",
    linears=(*attention("attention_bias"), *gated("mlp_bias")),
    norms=(*before(), *behind("post_norm1", "post_norm2")),
    norm_eps="rms_norm_eps",
    multiplier_key="residual_multiplier",
    defaults={"use_post_norm": True},
    requires={"use_post_norm": True},
)
