"""Youtu: DeepSeek's latent attention, carried as it is, before dense FFNs."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.kinds import Always, Kinds
from pipeline.architecture.families.mixers import MLA, MLA_COST, latent_attention
from pipeline.architecture.families.parts import before, gated

YOUTU = Family(
    model_type="youtu",
    class_prefix="Youtu",
    kinds=Kinds(mixers=Always(MLA), costs={MLA: MLA_COST}),
    linears=gated(),
    norms=before(),
    carried=latent_attention(),
    defaults={"tie_word_embeddings": True, "q_lora_rank": 1536},
    norm_eps="rms_norm_eps",  # the norms between the pairs have an epsilon of their own
)
