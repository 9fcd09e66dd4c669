"""GLM-4.5: dense blocks first, then experts chosen by sigmoid scores with a correction, and a shared expert that is carried."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.kinds import First, Kinds
from pipeline.architecture.families.mixers import MIXTURE, corrected_mixture
from pipeline.architecture.families.parts import attention, before, deepseek_experts, gated, one_by_one, query_key_norms

GLM4_MOE = Family(
    model_type="glm4_moe",
    class_prefix="Glm4Moe",
    kinds=Kinds(ffns=First("first_k_dense_replace", "dense", MIXTURE)),
    linears=(*attention("attention_bias", False), *gated()),
    norms=(*before(), *query_key_norms()),
    carried=corrected_mixture(),
    defaults={"first_k_dense_replace": 1, "n_shared_experts": 1, "use_qk_norm": False},
    requires={"use_qk_norm": True},
    passed_over=(r"model\.layers\.(46|92)\.", "head that predicts further tokens"),
    mixture=deepseek_experts("mlp.gate.e_score_correction_bias"),
    stored=one_by_one(),
    gguf_arch="glm4moe",
)
