"""MiniMax-M2: many experts, chosen by sigmoid scores with a correction; norms of queries and keys over all heads together."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, one_by_one, query_key_norms, routed

MINIMAX_M2 = Family(
    model_type="minimax_m2",
    class_prefix="MiniMaxM2",
    linears=attention(),
    norms=(*before(), *query_key_norms(axes=(Axis.QUERY, Axis.KV))),
    carried=(*routed(), Carried("mlp.e_score_correction_bias", (Axis.EXPERT,), Sublayer.FFN, trained=False)),
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    mixture=Mixture(
        "mlp.experts",
        "mlp.gate",
        ("num_experts", "num_local_experts"),
        width_key="intermediate_size",
        correction="mlp.e_score_correction_bias",
    ),
    stored={
        **one_by_one(disk="block_sparse_moe", names=("w1", "w3", "w2")),
        "mlp.gate.weight": ("block_sparse_moe.gate.weight",),
        "mlp.e_score_correction_bias": ("block_sparse_moe.e_score_correction_bias",),
    },
    gguf_arch="minimax-m2",
)
