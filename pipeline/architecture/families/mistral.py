"""Mistral: Llama's tensors without biases, with an optional sliding window."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.llama import LLAMA

MISTRAL = Family(
    model_type="mistral",
    class_prefix="Mistral",
    linears=(
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL),
        Linear("self_attn.o_proj", (Axis.RESIDUAL,), Axis.QUERY),
        Linear("mlp.gate_proj", (Axis.FFN,), Axis.RESIDUAL),
        Linear("mlp.up_proj", (Axis.FFN,), Axis.RESIDUAL),
        Linear("mlp.down_proj", (Axis.RESIDUAL,), Axis.FFN),
    ),
    norms=LLAMA.norms,
    decilm="llama",
    norm_eps="rms_norm_eps",
    onnx_builder="MistralModel",
    gguf_arch="llama",
)
