"""Phi-3 and Phi-4: Llama's computation with two fused projections, q, k and v in one and gate and up in one."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.parts import before, gate_and_up_in_one

PHI3 = Family(
    model_type="phi3",
    class_prefix="Phi3",
    linears=(
        Linear("self_attn.qkv_proj", (Axis.QUERY, Axis.KV, Axis.KV), Axis.RESIDUAL),
        Linear("self_attn.o_proj", (Axis.RESIDUAL,), Axis.QUERY),
        *gate_and_up_in_one(),
    ),
    norms=before(),
    norm_eps="rms_norm_eps",
    onnx_builder="Phi3MiniModel",
    gguf_arch="phi3",
)
