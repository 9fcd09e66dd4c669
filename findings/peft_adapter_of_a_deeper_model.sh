#!/bin/sh
# Guess: a LoRA adapter that was trained on four blocks is refused by a model with three, or peft warns of tensors without a place.
# Seen (peft 0.21.2, transformers 5.23.0): `PeftModel.from_pretrained` loads it without a warning and drops the fourth block's
#   tensors. The other way round (three onto four) it warns, and other widths are an error. `model.load_adapter` of transformers
#   logs the tensors that it did not use.
# For users of Trimline: after blocks went, the rest is numbered anew: the adapter of the dense model then sits on other blocks than
#   it was trained for, and nothing says so. Train adapters after pruning, or renumber their tensors with the plan's kept blocks.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM


def model(blocks: int, width: int = 96) -> LlamaForCausalLM:
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=width, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=blocks))


def said(folder: str, base: LlamaForCausalLM) -> list[str]:
    """Warnings about the adapter's tensors while it is loaded onto the base."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(base, folder)
    return [str(warning.message) for warning in caught if "key" in str(warning.message).lower()]


for blocks in (3, 4):
    get_peft_model(model(blocks), LoraConfig(r=4, target_modules=["up_proj", "down_proj"])).save_pretrained(f"of_{blocks}")
seen(said("of_4", model(3)) == [], "an adapter of four blocks loads onto three without a warning")
seen(len(said("of_3", model(4))) == 1, "an adapter of three blocks onto four is warned of")
try:
    said("of_3", model(3, width=80))
    refused = False
except RuntimeError:
    refused = True
seen(refused, "an adapter onto narrower FFNs is refused")
EOF
