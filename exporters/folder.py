"""File names of an exported folder."""

from __future__ import annotations

from pipeline.common.files import GATE

__all__ = ["CONFIG", "EXPORT", "GATE", "GENAI_CONFIG"]

CONFIG = "checkpoint_config.json"  # sizes per block, for whoever measures the graph
EXPORT = "export.json"  # how it was exported
GENAI_CONFIG = "genai_config.json"  # as onnxruntime-genai calls it
