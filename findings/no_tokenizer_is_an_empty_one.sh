#!/bin/sh
# Guess: AutoTokenizer on a folder without any tokenizer file raises, whatever the model.
# Seen (transformers 5.23.0): beside qwen2, qwen3 and opt it opens a tokenizer of one token, for which every text is empty. Beside
#   llama, mistral and phi3 it raises ValueError.
# For users of Trimline: a copy that forgot the tokenizer looks whole, and a perplexity or a calibration of nothing follows. The gates
#   ask whether a tokenizer makes tokens, not whether it opens.
. "$(dirname "$0")/lib.sh"
packages transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
python <<'EOF'
from seen import seen
from transformers import AutoConfig, AutoTokenizer


def opened(model_type: str):
    """The tokenizer of a folder that holds config.json alone; None where that is refused."""
    AutoConfig.for_model(model_type).save_pretrained(model_type)
    try:
        return AutoTokenizer.from_pretrained(model_type)
    except ValueError:
        return None


for kind in ("qwen2", "qwen3", "opt"):
    tokenizer = opened(kind)
    seen(tokenizer is not None and len(tokenizer) == 1 and tokenizer("hello").input_ids == [], f"beside {kind} it opens, and every text is empty")
for kind in ("llama", "mistral", "phi3"):
    seen(opened(kind) is None, f"beside {kind} it is refused")
EOF
