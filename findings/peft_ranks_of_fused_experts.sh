#!/bin/sh
# Guess: `LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"])`, the recipe of every older mixture, finds nothing in
#   transformers 5, where experts are stacked and gate and up are one; or it gives each matrix rank 4.
# Seen (peft 0.21.2, transformers 5.23.0, Qwen3-MoE): it is translated to the stacked parameters, and gate and up together get rank
#   8 for each expert while down gets 4. Named by `target_parameters`, the same stacks get 4. A warning says at the same time that
#   the pattern which doubled the rank matched nothing.
# For users of Trimline: adapters for recovery after experts went are larger than the rank says, and two ways to write the same
#   recipe train different numbers of parameters. Count them (`print_trainable_parameters`) before comparing.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import warnings

from peft import LoraConfig, get_peft_model
from seen import seen
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS = 4
sizes = dict(vocab_size=64, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, head_dim=8)


def ranks(**which: list[str]) -> list[int]:
    """Rank per expert of each adapter, sorted; peft stacks the experts' ranks in one matrix."""
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=2))
    adapted = get_peft_model(model, LoraConfig(r=4, **which))
    return sorted(value.shape[0] // EXPERTS for name, value in adapted.named_parameters() if "lora_A" in name)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    by_module = ranks(target_modules=["gate_proj", "up_proj", "down_proj"])
seen(by_module == [4, 8], "with the old names: rank 4 for down, 8 for gate and up together")
seen(any("did not match" in str(warning.message) for warning in caught), "a warning says that the pattern of 8 matched nothing")
by_parameter = ranks(target_modules=[], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
seen(by_parameter == [4, 4], "with the parameters' names: 4 and 4")
EOF
