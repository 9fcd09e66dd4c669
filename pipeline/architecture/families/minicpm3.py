"""MiniCPM3: latent attention, and a multiplier of what sublayers give that the class divides by the root of the depth."""

from dataclasses import replace

from pipeline.architecture.families.parts import gated
from pipeline.architecture.families.youtu import YOUTU

MINICPM3 = replace(
    YOUTU,
    model_type="minicpm3",
    class_prefix="MiniCPM3",
    linears=gated("mlp_bias"),
    defaults={"tie_word_embeddings": True, "q_lora_rank": 768},
    root_of_depth="scale_depth",
    norm_eps=None,
    fixed_stream="its logits are divided by a part of how many there are",
)
