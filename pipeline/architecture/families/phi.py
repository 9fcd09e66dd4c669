"""Phi-1, 1.5 and 2: attention and FFN beside each other behind one LayerNorm; biases everywhere, on the head too."""

from pipeline.architecture.families.family import Axis, Family, Norm
from pipeline.architecture.families.parts import attention, plain

PHI = Family(
    model_type="phi",
    class_prefix="Phi",
    linears=(*attention(True, output="dense"), *plain("fc1", "fc2", True)),
    norms=(Norm("input_layernorm", Axis.RESIDUAL, None, bias=True),),
    final_norms=("model.final_layernorm",),
    norm_bias=True,
    head_bias=True,
    defaults={"qk_layernorm": False},
    requires={"qk_layernorm": False},
    gguf_arch="phi2",
    onnx_builder="PhiModel",
)
