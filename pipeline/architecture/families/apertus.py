"""Apertus: an FFN of two matrices whose activation has two trained numbers; norms of queries and keys."""

from pipeline.architecture.families.family import Carried, Family, Sublayer
from pipeline.architecture.families.parts import attention, plain, query_key_norms, stream_norms

APERTUS = Family(
    model_type="apertus",
    class_prefix="Apertus",
    linears=(*attention("attention_bias"), *plain("up_proj", "down_proj")),
    norms=(*stream_norms(attention=("attention_layernorm",), ffn=("feedforward_layernorm",)), *query_key_norms()),
    carried=(
        Carried("mlp.act_fn.alpha_p", (1,), Sublayer.FFN),
        Carried("mlp.act_fn.alpha_n", (1,), Sublayer.FFN),
        Carried("mlp.act_fn.beta", (), Sublayer.FFN, trained=False),
        Carried("mlp.act_fn.eps", (), Sublayer.FFN, trained=False),
    ),
    gguf_arch="apertus",
)
