"""Granite with windows: a sink per query head, and a rotary base per block, of which some have none."""

from dataclasses import replace

from pipeline.architecture.families.family import Axis, Carried, Sublayer
from pipeline.architecture.families.granite import GRANITE

GRANITE_SWA = replace(
    GRANITE,
    model_type="granite_swa",
    class_prefix="GraniteSWA",
    carried=(Carried("self_attn.sinks", (Axis.HEADS,), Sublayer.ATTENTION),),
    defaults={"tie_word_embeddings": True},
    onnx_builder=None,
    gguf_arch=None,
)
