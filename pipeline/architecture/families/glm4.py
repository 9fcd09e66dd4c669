"""GLM 4: GLM with norms after the sublayers too."""

from dataclasses import replace

from pipeline.architecture.families.glm import GLM
from pipeline.architecture.families.parts import stream_norms

GLM4 = replace(
    GLM,
    model_type="glm4",
    class_prefix="Glm4",
    norms=stream_norms(attention=("input_layernorm", "post_self_attn_layernorm"), ffn=("post_attention_layernorm", "post_mlp_layernorm")),
)
