"""Ministral: Mistral with blocks that attend to a window, and others that do not."""

from dataclasses import replace

from pipeline.architecture.families.mistral import MISTRAL

MINISTRAL = replace(MISTRAL, model_type="ministral", class_prefix="Ministral", onnx_builder="MistralModel")
