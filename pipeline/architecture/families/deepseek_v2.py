"""DeepSeek-V2 and its Lite: latent attention, dense blocks first, then experts chosen by softmax, in groups of which the best expert speaks."""

from pipeline.architecture.families.family import Family, Mixture
from pipeline.architecture.families.kinds import Always, First, Kinds
from pipeline.architecture.families.mixers import MIXTURE, MLA, MLA_COST, in_mixtures, latent_attention, shared_in_one
from pipeline.architecture.families.parts import before, gated, one_by_one, routed

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    class_prefix="DeepseekV2",
    kinds=Kinds(mixers=Always(MLA), ffns=First("first_k_dense_replace", "dense", MIXTURE), costs={MLA: MLA_COST}),
    linears=gated(),
    norms=before(),
    carried=(*latent_attention(), *in_mixtures(*routed()), *shared_in_one()),
    defaults={"first_k_dense_replace": 0, "n_shared_experts": 2, "q_lora_rank": 1536, "mlp_bias": False},
    requires={"mlp_bias": False},
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_experts", "n_routed_experts"), groups_key="n_group", group_best=1),
    stored=one_by_one(),
)
