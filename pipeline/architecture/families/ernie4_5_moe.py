"""ERNIE 4.5 with experts: dense blocks first, then experts chosen by softmax scores with a correction, and shared ones that are carried."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.kinds import Between, Kinds
from pipeline.architecture.families.mixers import MIXTURE, in_mixtures, shared_in_one
from pipeline.architecture.families.parts import attention, before, gated, one_by_one, routed

CORRECTION = "moe_statics.e_score_correction_bias"

ERNIE4_5_MOE = Family(
    model_type="ernie4_5_moe",
    class_prefix="Ernie4_5_Moe",
    kinds=Kinds(ffns=Between("moe_layer_start_index", "moe_layer_end_index", MIXTURE, "dense", defaults=(1, -1))),
    linears=(*attention(), *gated()),
    norms=before(),
    carried=(
        *in_mixtures(*routed(), Carried(f"mlp.gate.{CORRECTION}", (1, Axis.EXPERT), Sublayer.FFN)),
        *shared_in_one("moe_num_shared_experts"),
    ),
    defaults={"tie_word_embeddings": True, "moe_layer_interval": 1, "moe_num_shared_experts": 2, "use_bias": False},
    requires={"moe_layer_interval": 1, "use_bias": False},
    passed_over=(r"model\.mtp_", "head that predicts further tokens"),
    mixture=Mixture(
        *("mlp.experts", "mlp.gate", ("num_experts", "moe_num_experts")),
        chosen_key="moe_k",
        correction=f"mlp.gate.{CORRECTION}",
        sums_to_one=True,
    ),
    stored={**one_by_one(), f"mlp.gate.{CORRECTION}": (f"mlp.{CORRECTION}",)},
    rotates_neighbours=True,
)
