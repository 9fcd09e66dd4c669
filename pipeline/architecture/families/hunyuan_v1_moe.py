"""HunYuan-A13B: experts and a shared one of the same width; norms of queries and keys."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.parts import OF_ALL_EXPERTS, attention, before, gated, one_by_one, query_key_norms, routed

HUNYUAN_V1_MOE = Family(
    model_type="hunyuan_v1_moe",
    class_prefix="HunYuanMoEV1",
    linears=(*attention("attention_bias"), *gated(module="mlp.shared_mlp")),
    norms=(*before(), *query_key_norms("query_layernorm", "key_layernorm")),
    carried=routed(router="gate.wg.weight"),
    ffn="mlp.shared_mlp",
    ffn_key=None,
    fixed_ffn=OF_ALL_EXPERTS,
    mixture=Mixture(
        "mlp.experts",
        "mlp.gate.wg",
        ("num_local_experts", "num_experts"),
        chosen_key="moe_topk",
        width_key="intermediate_size",
        shared_keys=("intermediate_size",),
    ),
    stored=one_by_one(),
    gguf_arch="hunyuan-moe",
)
