"""Llama 2 and 3, SmolLM, TinyLlama, and everything else that calls itself ``llama``."""

from pipeline.architecture.families.family import Axis, Family, Linear, Norm, Sublayer

LLAMA = Family(
    model_type="llama",
    class_prefix="Llama",
    linears=(
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL, bias="attention_bias"),
        Linear("self_attn.o_proj", (Axis.RESIDUAL,), Axis.QUERY, bias="attention_bias"),
        Linear("mlp.gate_proj", (Axis.FFN,), Axis.RESIDUAL, bias="mlp_bias"),
        Linear("mlp.up_proj", (Axis.FFN,), Axis.RESIDUAL, bias="mlp_bias"),
        Linear("mlp.down_proj", (Axis.RESIDUAL,), Axis.FFN, bias="mlp_bias"),
    ),
    norms=(
        Norm("input_layernorm", Axis.RESIDUAL, Sublayer.ATTENTION),
        Norm("post_attention_layernorm", Axis.RESIDUAL, Sublayer.FFN),
    ),
    decilm="llama",
    norm_eps="rms_norm_eps",
    onnx_builder="LlamaModel",
    gguf_arch="llama",
)
