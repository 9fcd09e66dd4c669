"""IQuest-Coder: transformers opens it as Llama, with a config class of its own."""

from dataclasses import replace

from pipeline.architecture.families.llama import LLAMA

IQUESTCODER = replace(LLAMA, model_type="iquestcoder", config_class="IQuestCoderConfig", onnx_builder="LlamaModel")
