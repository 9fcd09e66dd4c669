"""LFM2 with experts: its convolutions and attention; dense blocks first, then experts chosen by sigmoid scores with a correction."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.kinds import First, Kinds
from pipeline.architecture.families.lfm2 import LFM2
from pipeline.architecture.families.mixers import MIXTURE, in_mixtures
from pipeline.architecture.families.parts import one_by_one, routed

CORRECTION = "feed_forward.expert_bias"

LFM2_MOE = Family(
    model_type="lfm2_moe",
    class_prefix="Lfm2Moe",
    kinds=Kinds(mixers=LFM2.kinds.mixers, ffns=First("num_dense_layers", "dense", MIXTURE), costs=LFM2.kinds.costs),
    linears=LFM2.linears,
    norms=LFM2.norms,
    carried=(*LFM2.carried, *in_mixtures(*routed("feed_forward"), Carried(CORRECTION, (Axis.EXPERT,), Sublayer.FFN, trained=False))),
    ffn="feed_forward",
    final_norms=LFM2.final_norms,
    old_keys={"tie_embedding": "tie_word_embeddings"},
    defaults={"tie_word_embeddings": True, "conv_L_cache": 3, "num_dense_layers": 2, "use_expert_bias": True},
    requires={"use_expert_bias": True},
    mixture=Mixture("feed_forward.experts", "feed_forward.gate", ("num_experts",), correction=CORRECTION),
    stored=one_by_one("feed_forward", "feed_forward", ("w1", "w3", "w2")),
)
