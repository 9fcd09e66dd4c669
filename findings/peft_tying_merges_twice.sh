#!/bin/sh
# Guess: `ensure_weight_tying=True`, which peft's warning about an adapter on a tied head or token table asks for, is what makes merging
#   right: both layers share one adapter, and the one tensor that they share gets its product once.
# Seen (peft 0.21.2, transformers 5.23.0): merging adds the product once for the head and once for the table, into the same tensor: the
#   merged model has the adapter at twice its strength, at both ends, and is another model than the one that was trained. Without the
#   switch it is added once. A long warning at merging speaks of complications, and says the same whether the switch is set or not.
# For users of Trimline: recovery that trains the head or the table of a tied model by LoRA and is merged elsewhere. Compare logits before
#   and after merging, or untie before training.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from peft import LoraConfig, get_peft_model
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
tokens = torch.arange(3, 27)[None]


@torch.no_grad()
def merged(layer: str, tied: bool, **more: bool) -> tuple[float, float]:
    """How often the adapter's product went into that layer's weight, and how far merging moves logits."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied, initializer_range=0.1)).eval()
    before = model.get_submodule(layer).weight.clone()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=[layer.split(".")[-1]], **more))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            parameter.normal_(std=0.1)
    product = adapted.get_submodule(f"base_model.model.{layer}").get_delta_weight("default").clone()
    logits = adapted(tokens, use_cache=False).logits
    whole = adapted.merge_and_unload()
    change = whole.get_submodule(layer).weight - before
    times = float((change * product).sum() / (product * product).sum())
    return round(times, 3), float((whole(tokens, use_cache=False).logits - logits).abs().max())


times, moved = merged("lm_head", tied=False)
seen(times == 1 and moved < 1e-3, f"a head of its own: added once, logits stay ({moved:.0e})")
for layer in ("lm_head", "model.embed_tokens"):
    seen(merged(layer, tied=True)[0] == 1, f"tied, {layer}, without the switch: added once")
    times, moved = merged(layer, tied=True, ensure_weight_tying=True)
    seen(times == 2 and moved > 0.1, f"tied, {layer}, with ensure_weight_tying: added twice, logits move by {moved:.1f}")
EOF
