#!/bin/sh
# Guess: `LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"])` puts adapters beside every module of these names: in GLM-4.5
#   the FFN of the first, dense block and the shared expert of the others; routed experts, which are stacked, get theirs or none.
# Seen (peft 0.21.2, transformers 5.23.0, Glm4Moe): the names are taken for those of routed experts alone. These get adapters, and the
#   dense block's FFN and the shared experts get none, without a word, also where the list names them by their whole paths.
# For users of Trimline: recovery switches that translation off and compares what got an adapter with what was asked for. Whoever trains
#   a mixture with peft alone names shared experts and dense blocks in vain; look at `model.targeted_module_names` before training.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import warnings

from peft import LoraConfig, get_peft_model
from seen import seen
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

NAMES = ("gate_proj", "up_proj", "down_proj")
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, head_dim=8)
counts = dict(num_attention_heads=4, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1)


def adapted(targets: list[str]) -> tuple[list[str], list[str]]:
    """Modules of these names that there are, and names of what got an adapter."""
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**sizes, **counts))
    there = sorted(name for name, _ in model.named_modules() if name.endswith(NAMES))
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    return there, sorted(name for name, _ in wrapped.named_parameters() if "lora_A" in name)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    there, by_name = adapted(list(NAMES))
    _, by_path = adapted(there)
seen(len(there) == 6, "a dense block and a shared expert: six modules of these names")
for how, found in (("by name", by_name), ("by their whole paths", by_path)):
    seen(len(found) == 2 and all(".experts." in name for name in found), f"asked for {how}: adapters beside the routed experts alone")
spoken = [str(warning.message) for warning in caught]
seen(not any("shared_experts" in said or "layers.0" in said for said in spoken), "no warning names what was left out")
