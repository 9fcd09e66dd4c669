#!/bin/sh
# Guess: transformers 5 holds experts stacked, and save_pretrained writes one form: the names that published Qwen3-MoE folders have,
#   one tensor for each expert and matrix, however the model came into memory.
# Seen (transformers 5.23.0): it depends on what was read. A model that was made from a config is written under the published names. The
#   same model from a file with stacked tensors (its own state_dict, saved by safetensors) loads without a word and is written stacked, by
#   any later save_pretrained. A reader that knows the published names alone finds no experts in it.
# For users of Trimline: a training script that saves `model.state_dict()` makes such a folder, and it stays one through every later tool of
#   transformers 5. Folders with stacked experts are read here; look at the names before another program gets them.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from seen import seen
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES = dict(vocab_size=64, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2, head_dim=8)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)
PUBLISHED, STACKED = "model.layers.0.mlp.experts.0.gate_proj.weight", "model.layers.0.mlp.experts.gate_up_proj"


def names(folder: str) -> set[str]:
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        return set(file.keys())


model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2)).eval()
model.save_pretrained("made")
seen(PUBLISHED in names("made") and STACKED not in names("made"), "made from a config: written under the published names")
AutoModelForCausalLM.from_pretrained("made").save_pretrained("again")
seen(names("again") == names("made"), "read from those and saved: the same names")
shutil.copytree("made", "stacked")
save_file(model.state_dict(), "stacked/model.safetensors", {"format": "pt"})
other, report = AutoModelForCausalLM.from_pretrained("stacked", output_loading_info=True)
tokens = torch.arange(3, 27)[None]
with torch.no_grad():
    same = torch.allclose(other.eval()(tokens).logits, model(tokens).logits, atol=1e-5)
seen(same and not any(report.values()), "read from its own state_dict: the same model, and nothing to report")
other.save_pretrained("later")
seen(STACKED in names("later") and PUBLISHED not in names("later"), "and saved: stacked, without the published names")
EOF
