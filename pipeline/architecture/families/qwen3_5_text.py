"""Qwen3.5 and 3.6, dense, text: three blocks of four hold a gated delta rule; the others attend, with a gate on every channel of a head."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.kinds import ATTENTION, Every, Kinds, Listed
from pipeline.architecture.families.mixers import DELTA, DELTA_COST, delta_net
from pipeline.architecture.families.parts import before, gated, gated_attention, query_key_norms

QWEN3_5_TEXT = Family(
    model_type="qwen3_5_text",
    class_prefix="Qwen3_5",
    config_class="Qwen3_5TextConfig",
    kinds=Kinds(
        mixers=Listed(
            "layer_types",
            {DELTA: DELTA, "full_attention": ATTENTION},
            Every("full_attention_interval", ATTENTION, DELTA, default=4),
        ),
        costs={DELTA: DELTA_COST},
    ),
    linears=(*gated_attention("attention_bias"), *gated()),
    norms=(*before(), *query_key_norms()),
    carried=delta_net(),
    passed_over=(r"mtp\.", "head that predicts further tokens"),
    norms_less_one=True,
)
