#!/bin/sh
# Guess: with a device map that puts some blocks on disk, `weight.zero_()` on one of those is an error, or is written through to the disk.
# Seen (transformers 5.23.0, accelerate 1.15.0): it succeeds and does nothing. What stands in the model are placeholders on the meta
#   device, on which every change in place works; the next pass fetches the old weights, and save_pretrained writes them. Blocks that
#   are in memory do take the change: half of a pruning holds.
# For users of Trimline: scripts that mask weights in a model too large for memory, loaded with `device_map="auto"`, prune the blocks that
#   happened to fit. Count the zeros in what was saved. Blocks here are read, cut and written one at a time instead.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0
python <<'EOF'
import torch
from safetensors.torch import load_file
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained("model")
places = {f"model.layers.{block}": "disk" if block in (1, 2) else "cpu" for block in range(4)}
places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
tokens = torch.arange(3, 27)[None]


def opened(**more: object) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained("model", **more).eval()


@torch.no_grad()
def logits(model: LlamaForCausalLM, zeroed: tuple[int, ...]) -> torch.Tensor:
    """After down_proj of these blocks is set to zero."""
    for block in zeroed:
        model.model.layers[block].mlp.down_proj.weight.zero_()
    return model(tokens, use_cache=False).logits


model = opened(device_map=places, offload_folder="offloaded")
found = logits(model, (0, 1, 2, 3))  # no error
seen(torch.allclose(found, logits(opened(), (0, 3)), atol=1e-4), "zeros went into all four blocks; it computes as with those in memory alone")
seen(not torch.allclose(found, logits(opened(), (0, 1, 2, 3)), atol=1e-2), "and not as with all four")
model.save_pretrained("saved")
stored = load_file("saved/model.safetensors")
zeros = [bool((stored[f"model.layers.{block}.mlp.down_proj.weight"] == 0).all()) for block in range(4)]
seen(zeros == [True, False, False, True], "save_pretrained writes the old weights of the blocks on disk")
EOF
