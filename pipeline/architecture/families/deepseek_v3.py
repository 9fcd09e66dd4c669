"""DeepSeek-V3 and R1: latent attention, dense blocks first, then experts chosen in groups by sigmoid scores with a correction."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.kinds import Always, First, Kinds
from pipeline.architecture.families.mixers import MIXTURE, MLA, MLA_COST, corrected_mixture, latent_attention
from pipeline.architecture.families.parts import before, deepseek_experts, gated, one_by_one

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    class_prefix="DeepseekV3",
    kinds=Kinds(mixers=Always(MLA), ffns=First("first_k_dense_replace", "dense", MIXTURE), costs={MLA: MLA_COST}),
    linears=gated(),
    norms=before(),
    carried=(*latent_attention(), *corrected_mixture()),
    defaults={"first_k_dense_replace": 3, "n_shared_experts": 1, "q_lora_rank": 1536},
    passed_over=(r"model\.layers\.61\.", "head that predicts further tokens"),
    mixture=deepseek_experts("mlp.gate.e_score_correction_bias"),
    stored=one_by_one(),
)
