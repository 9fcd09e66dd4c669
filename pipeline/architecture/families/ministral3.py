"""Ministral 3: Mistral whose queries grow with their position beyond an original context."""

from dataclasses import replace

from pipeline.architecture.families.mistral import MISTRAL

MINISTRAL3 = replace(
    MISTRAL,
    model_type="ministral3",
    class_prefix="Ministral3",
    decilm=None,
    onnx_builder=None,
    onnx_obstacle="its queries grow with their position, which onnxruntime-genai's builder leaves out",
    gguf_arch="mistral3",
)
