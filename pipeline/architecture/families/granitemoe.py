"""Granite-MoE: Granite with experts in the place of each FFN, stacked in files too, under other names."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, routed

GRANITEMOE = Family(
    model_type="granitemoe",
    class_prefix="GraniteMoe",
    linears=attention("attention_bias"),
    norms=before(),
    carried=routed("block_sparse_moe", "router.weight"),
    ffn="block_sparse_moe",
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    multiplier_key="residual_multiplier",
    fixed_stream="channels of the stream that experts read are not cut yet",
    mixture=Mixture("block_sparse_moe.experts", "block_sparse_moe.router", ("num_local_experts",), width_key="intermediate_size"),
    stored={
        "block_sparse_moe.router.weight": ("block_sparse_moe.router.layer.weight",),
        "block_sparse_moe.experts.gate_up_proj": ("block_sparse_moe.input_linear.weight",),
        "block_sparse_moe.experts.down_proj": ("block_sparse_moe.output_linear.weight",),
    },
    gguf_arch="granitemoe",
)
