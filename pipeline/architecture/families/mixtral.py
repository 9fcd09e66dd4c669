"""Mixtral: Mistral with eight experts in the place of each FFN, two for every token."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, one_by_one, routed

MIXTRAL = Family(
    model_type="mixtral",
    class_prefix="Mixtral",
    linears=attention(),
    norms=before(),
    carried=routed(),
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    fixed_stream="channels of the stream that experts read are not cut yet",
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_experts", "num_local_experts"), width_key="intermediate_size"),
    stored={**one_by_one(disk="block_sparse_moe", names=("w1", "w3", "w2")), "mlp.gate.weight": ("block_sparse_moe.gate.weight",)},
    gguf_arch="llama",
)
