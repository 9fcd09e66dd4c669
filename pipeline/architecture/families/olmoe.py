"""OLMoE: 64 small experts in the place of each FFN, eight for every token; norms of queries and keys over all heads together."""

from pipeline.architecture.families.family import Axis, Family, Mixture
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before, one_by_one, query_key_norms, routed

OLMOE = Family(
    model_type="olmoe",
    class_prefix="Olmoe",
    linears=attention("attention_bias"),
    norms=(*before(), *query_key_norms(axes=(Axis.QUERY, Axis.KV))),
    carried=routed(),
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    mixture=Mixture("mlp.experts", "mlp.gate", ("num_local_experts", "num_experts"), width_key="intermediate_size"),
    stored=one_by_one(),
    gguf_arch="olmoe",
)
