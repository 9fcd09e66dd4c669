#!/bin/sh
# Guess: a block that is deleted from `model.model.layers` is gone, whichever it was: decoding step by step with a cache goes on giving the
#   logits of one pass, or ends in an error, since cache and blocks no longer count alike.
# Seen (transformers 5.23.0): with an inner block deleted it does. With the *first* one deleted, one pass is right, and steps with a cache are
#   wrong without a word: blocks keep the number that they were made with, and the length of the past is asked of entry 0, which nobody
#   fills any more, so that every step stands at position 0. `generate` counts positions itself and hides it. Renumbering the
#   blocks (`layer_idx`) mends it; setting `num_hidden_layers` alone ends in an IndexError as soon as a cache is used.
# For users of Trimline: try a block's removal in memory with renumbered blocks. A rebuilt folder has them numbered anew, and its gate
#   compares steps with one pass.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
tokens = torch.randint(3, 64, (1, 24), generator=torch.Generator().manual_seed(1))


def without(block: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2, initializer_range=0.3)).eval()
    del model.model.layers[block]
    return model


@torch.no_grad()
def difference(model: LlamaForCausalLM) -> float:
    """Largest difference of logits between one pass and a prompt of 16 with 8 steps behind it."""
    output = model(tokens[:, :16], use_cache=True)
    steps = [output.logits[:, -1]]
    for place in range(16, 24):
        output = model(tokens[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits[:, -1])
    return float((torch.stack(steps, 1) - model(tokens, use_cache=False).logits[:, 15:]).abs().max())


seen((inner := difference(without(1))) < 1e-3, f"block 1 deleted: steps give one pass's logits ({inner:.0e})")
seen((first := difference(without(0))) > 1, f"block 0 deleted: steps are off by {first:.1f}")
model = without(1)
model.config.num_hidden_layers = 3
try:
    difference(model)
    refused = False
except IndexError:
    refused = True
seen(refused, "block 1 deleted and num_hidden_layers set: a cache ends in an IndexError")
model = without(0)
chosen = [model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=cached).tolist() for cached in (True, False)]
seen(chosen[0] == chosen[1], "block 0 deleted: `generate` with a cache chooses what it chooses without")
for number, block in enumerate(model.model.layers):
    block.self_attn.layer_idx = number
seen((renumbered := difference(model)) < 1e-3, f"block 0 deleted, blocks renumbered: steps agree ({renumbered:.0e})")
EOF
