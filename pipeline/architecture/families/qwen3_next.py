"""Qwen3-Next: Qwen3.5's mixers, with two fused projections into the delta rule, before experts and a shared one behind a gate."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.kinds import ATTENTION, Every, Kinds, Listed
from pipeline.architecture.families.mixers import DELTA, DELTA_COST, FUSED_DELTA, delta_net
from pipeline.architecture.families.parts import before, gated, gated_attention, one_by_one, query_key_norms, routed

QWEN3_NEXT = Family(
    model_type="qwen3_next",
    class_prefix="Qwen3Next",
    kinds=Kinds(
        mixers=Listed(
            "layer_types", {DELTA: DELTA, "full_attention": ATTENTION}, Every("full_attention_interval", ATTENTION, DELTA, default=4)
        ),
        costs={DELTA: DELTA_COST},
    ),
    linears=(*gated_attention("attention_bias"), *gated(module="mlp.shared_expert")),
    norms=(*before(), *query_key_norms()),
    carried=(*delta_net(*FUSED_DELTA), *routed(), Carried("mlp.shared_expert_gate.weight", (1, Axis.RESIDUAL), Sublayer.FFN)),
    ffn="mlp.shared_expert",
    ffn_key="shared_expert_intermediate_size",
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_experts",), shared_gate=True),
    stored=one_by_one(),
    passed_over=(r"mtp\.", "head that predicts further tokens"),
    defaults={"decoder_sparse_step": 1, "mlp_only_layers": []},
    requires={"decoder_sparse_step": 1, "mlp_only_layers": []},
    norms_less_one=True,
)
