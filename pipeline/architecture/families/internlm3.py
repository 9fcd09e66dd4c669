"""InternLM3: transformers opens it as Llama, with a config class of its own."""

from dataclasses import replace

from pipeline.architecture.families.llama import LLAMA

INTERNLM3 = replace(LLAMA, model_type="internlm3", config_class="InternLM3Config", onnx_builder="LlamaModel")
