#!/bin/sh
# Guess: with `head_dim` in config.json the number of heads is free: a Llama of width 64 with 6 heads of 16 opens, as a Qwen3 does.
# Seen (transformers 5.23.0): it depends on the family. Llama, Gemma 2 and 3 and Arcee refuse a width that is no multiple of the number of
#   heads, `head_dim` or not, though their classes compute with it; with the same numbers Mistral, Qwen2, Qwen3, Gemma 1, Granite,
#   OLMo 2, SmolLM3, Cohere 2, GLM-4 and Mixtral are built with projections of 6 x 16.
# For users of Trimline: whether a stock class takes a model that lost attention heads depends on their number and on the family. Ask for a
#   number that divides the width, or take the profile that ships its own configuration.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
from seen import seen
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_key_value_heads=2, head_dim=16)
SIZES |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def built(family: str, heads: int) -> int | None:
    """The width that the output projection of attention reads, None where the config is refused."""
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, num_attention_heads=heads))
    except Exception as raised:  # a class of huggingface_hub
        assert "not a multiple of the number of attention" in str(raised), raised
        return None
    return model.model.layers[0].self_attn.o_proj.weight.shape[1]


for family in ("llama", "gemma2", "gemma3_text", "arcee"):
    seen(built(family, 6) is None and built(family, 8) == 128, f"{family}: 6 heads of 16 are refused, 8 heads of 16 are built")
for family in ("mistral", "qwen2", "qwen3", "gemma", "granite", "olmo2", "smollm3", "cohere2", "glm4", "mixtral"):
    seen(built(family, 6) == 96, f"{family}: 6 heads of 16 are built")
EOF
