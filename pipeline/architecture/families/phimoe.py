"""Phi-3.5-MoE: sixteen experts, two for every token by a sampler of its own; LayerNorms; biases in attention and on the head."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, one_by_one, routed

PHIMOE = Family(
    model_type="phimoe",
    class_prefix="Phimoe",
    linears=attention("attention_bias"),
    norms=before(bias=True),
    carried=routed(router="router.weight"),
    norm_bias=True,
    head_bias=True,
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    defaults={"lm_head_bias": False},
    requires={"lm_head_bias": True},
    mixture=Mixture("mlp.experts", "mlp.router", ("num_local_experts",), width_key="intermediate_size"),
    stored={**one_by_one(disk="block_sparse_moe", names=("w1", "w3", "w2")), "mlp.router.weight": ("block_sparse_moe.gate.weight",)},
)
