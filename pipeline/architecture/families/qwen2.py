"""Qwen2 and Qwen2.5: biases on q, k and v, none on the output projection."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.mistral import MISTRAL

QWEN2 = Family(
    model_type="qwen2",
    class_prefix="Qwen2",
    linears=(
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL, bias=True),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL, bias=True),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL, bias=True),
        *MISTRAL.linears[3:],
    ),
    norms=MISTRAL.norms,
    decilm="qkv_bias",
    norm_eps="rms_norm_eps",
    onnx_builder="QwenModel",
    gguf_arch="qwen2",
)
