"""GLM 4: GLM with norms after the sublayers too."""

from dataclasses import replace

from pipeline.architecture.families.glm import GLM
from pipeline.architecture.families.parts import before, behind

GLM4 = replace(
    GLM,
    model_type="glm4",
    class_prefix="Glm4",
    norms=(*before(), *behind("post_self_attn_layernorm", "post_mlp_layernorm")),
    gguf_arch="glm4",
    onnx_builder=None,
)
