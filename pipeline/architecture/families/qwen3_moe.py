"""Qwen3-MoE: Qwen3 with many small experts in the place of each FFN."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, one_by_one, query_key_norms, routed

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    class_prefix="Qwen3Moe",
    linears=attention("attention_bias"),
    norms=(*before(), *query_key_norms()),
    carried=routed(),
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_local_experts", "num_experts")),
    stored=one_by_one(),
    defaults={"decoder_sparse_step": 1, "mlp_only_layers": []},
    requires={"decoder_sparse_step": 1, "mlp_only_layers": []},
    gguf_arch="qwen3moe",
)
