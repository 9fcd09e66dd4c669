"""Gemma 3, text: Gemma 2 without soft caps, with norms of queries and keys and a rotary embedding per kind of block."""

from dataclasses import replace

from pipeline.architecture.families.gemma2 import GEMMA2
from pipeline.architecture.families.parts import query_key_norms

GEMMA3_TEXT = replace(
    GEMMA2,
    model_type="gemma3_text",
    class_prefix="Gemma3",
    config_class="Gemma3TextConfig",
    gguf_arch="gemma3",
    norms=(*GEMMA2.norms, *query_key_norms()),
    onnx_builder="Gemma3Model",
)
