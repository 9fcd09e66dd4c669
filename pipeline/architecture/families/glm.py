"""GLM: gate and up in one, and a rotary embedding of neighbouring channels in half of each head."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, gate_and_up_in_one

GLM = Family(
    model_type="glm",
    class_prefix="Glm",
    linears=(*attention("attention_bias", False), *gate_and_up_in_one()),
    norms=before(),
    norm_eps="rms_norm_eps",
    defaults={"attention_bias": True},
    gguf_arch="chatglm",
    rotates_neighbours=True,
    onnx_builder="ChatGLMModel",
)
