"""BioGPT: OPT's blocks with biases everywhere, a scaled embedding, and names of its own."""

from dataclasses import replace

from pipeline.architecture.families.opt import OPT

BIOGPT = replace(
    OPT,
    model_type="biogpt",
    class_prefix="BioGpt",
    blocks="biogpt.layers",
    embeddings=("biogpt.embed_tokens", "biogpt.embed_positions"),
    final_norms=("biogpt.layer_norm",),
    head="output_projection",
    ffn_key="intermediate_size",
    linears=tuple(replace(linear, bias=True) for linear in OPT.linears),
    defaults={"tie_word_embeddings": True},
    requires={},
)
