"""Qwen2-MoE: Qwen2 with experts, and a shared one that every token goes through, behind a gate of its own."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.parts import attention, before, gated, one_by_one, routed

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    class_prefix="Qwen2Moe",
    linears=(*attention("qkv_bias", False), *gated(module="mlp.shared_expert")),
    norms=before(),
    carried=(*routed(), Carried("mlp.shared_expert_gate.weight", (1, Axis.RESIDUAL), Sublayer.FFN)),
    ffn="mlp.shared_expert",
    ffn_key="shared_expert_intermediate_size",
    fixed_stream="channels of the stream that experts read are not cut yet",
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_experts",), shared_gate=True),
    stored=one_by_one(),
    defaults={"decoder_sparse_step": 1, "mlp_only_layers": [], "qkv_bias": True},
    requires={"decoder_sparse_step": 1, "mlp_only_layers": []},
    gguf_arch="qwen2moe",
)
