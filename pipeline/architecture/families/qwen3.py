"""Qwen3: RMS norms over head_dim on queries and keys; heads × head_dim may differ from the hidden size."""

from pipeline.architecture.families.family import Axis, Family, Linear, Norm, Sublayer
from pipeline.architecture.families.mistral import MISTRAL

QWEN3 = Family(
    model_type="qwen3",
    class_prefix="Qwen3",
    linears=(
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.o_proj", (Axis.RESIDUAL,), Axis.QUERY, bias="attention_bias"),
        *MISTRAL.linears[4:],
    ),
    norms=(
        *MISTRAL.norms,
        Norm("self_attn.q_norm", Axis.HEAD, Sublayer.ATTENTION, of=Axis.QUERY),
        Norm("self_attn.k_norm", Axis.HEAD, Sublayer.ATTENTION, of=Axis.KV),
    ),
    onnx_builder="Qwen3Model",
    gguf_arch="qwen3",
)
