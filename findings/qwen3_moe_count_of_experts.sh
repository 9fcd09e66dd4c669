#!/bin/sh
# Guess: Qwen3-MoE's config is written with `num_experts`, the name of its class's own argument and of the published folders; a
#   changed `num_experts` in config.json is taken, or refused where the weights do not fit.
# Seen (transformers 5.23.0): the count is written as `num_local_experts`. A `num_experts: 6` added beside it is ignored without a
#   word: eight experts load. Only where `num_local_experts` is taken out does it count, and is then refused for the weights' shapes.
# For users of Trimline: scripts that remove experts and then set `num_experts` in config.json leave a config that transformers
#   reads as before, while readers of the old name see the new number. Remove one name and write the other.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import json
from pathlib import Path

from seen import seen
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_key_value_heads=2, num_experts=8, num_experts_per_tok=2))
model.save_pretrained("model")
path = Path("model/config.json")
config = json.loads(path.read_text())
seen("num_experts" not in config and config["num_local_experts"] == 8, "the count is written as num_local_experts, not num_experts")

path.write_text(json.dumps(config | {"num_experts": 6}))
again = AutoModelForCausalLM.from_pretrained("model")
seen(again.config.num_experts == 8 and again.model.layers[0].mlp.experts.down_proj.shape[0] == 8, "num_experts: 6 beside it is ignored")

config.pop("num_local_experts")
path.write_text(json.dumps(config | {"num_experts": 6}))
try:
    AutoModelForCausalLM.from_pretrained("model")
    refused = False
except RuntimeError:
    refused = True
seen(refused, "alone it counts: the weights of eight experts no longer fit")
EOF
