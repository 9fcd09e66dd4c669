"""Qwen3.5 and 3.6 with experts, text: the dense type's mixers before experts and a shared one behind a gate."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.parts import gated, gated_attention, one_by_one, routed
from pipeline.architecture.families.qwen3_5_text import QWEN3_5_TEXT

QWEN3_5_MOE_TEXT = Family(
    model_type="qwen3_5_moe_text",
    class_prefix="Qwen3_5Moe",
    config_class="Qwen3_5MoeTextConfig",
    kinds=QWEN3_5_TEXT.kinds,
    linears=(*gated_attention("attention_bias"), *gated(module="mlp.shared_expert")),
    norms=QWEN3_5_TEXT.norms,
    carried=(*QWEN3_5_TEXT.carried, *routed(), Carried("mlp.shared_expert_gate.weight", (1, Axis.RESIDUAL), Sublayer.FFN)),
    ffn="mlp.shared_expert",
    ffn_key="shared_expert_intermediate_size",
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_experts",), shared_gate=True),
    stored=one_by_one(),
    passed_over=QWEN3_5_TEXT.passed_over,
    norms_less_one=True,
)
