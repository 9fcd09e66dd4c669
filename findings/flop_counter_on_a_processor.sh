#!/bin/sh
# Guess: torch's FlopCounterMode counts all products of a pass, whichever kernels compute them: half of the experts per token, or
#   a longer text, show in the number as they should.
# Seen (torch 2.13.0, transformers 5.23.0, CPU): attention by `sdpa`, which is the default, counts as nothing, at any length. Experts by
#   `grouped_mm`, the default as well, count as nothing: a mixture has the same FLOPs with one expert per token as with four. With both
#   set to `eager` the numbers are what one computes by hand. No warning.
# For users of Trimline: FLOPs before and after pruning that were counted so are of projections alone. Set both to `eager` for the
#   count. Trimline's own numbers come from formulas.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from seen import seen
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HIDDEN, WIDTH, BLOCKS, HEADS, HEAD = 64, 32, 2, 4, 16
SIZES = dict(vocab_size=64, hidden_size=HIDDEN, moe_intermediate_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS, head_dim=HEAD)


@torch.no_grad()
def flops(chosen: int, tokens: int, kernels: str | None) -> int:
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_key_value_heads=2, num_experts=8, num_experts_per_tok=chosen)).eval()
    if kernels:
        model.set_attn_implementation(kernels)
        model.set_experts_implementation(kernels)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(tokens)[None], use_cache=False)
    return counter.get_total_flops()


def experts(chosen: int, tokens: int) -> int:
    """By hand: three matrices of (HIDDEN, WIDTH) for each token and chosen expert, two FLOPs a weight."""
    return BLOCKS * tokens * chosen * 3 * 2 * HIDDEN * WIDTH


def attention(tokens: int) -> int:
    """By hand: scores and their sum over values, as eager attention computes them, over all pairs of tokens."""
    return BLOCKS * HEADS * 2 * 2 * tokens * tokens * HEAD


seen(flops(1, 16, None) == flops(4, 16, None), "by default, one expert per token costs as much as four")
seen(flops(4, 32, None) == 2 * flops(4, 16, None), "by default, twice the tokens cost exactly twice as much: attention is not in it")
seen(flops(4, 16, "eager") - flops(1, 16, "eager") == experts(3, 16), "eager: three more experts cost what they do by hand")
seen(flops(4, 32, "eager") - 2 * flops(4, 16, "eager") == attention(32) - 2 * attention(16), "eager: attention costs what it does by hand")
missing = flops(4, 16, "eager") - flops(4, 16, None)
seen(missing == experts(4, 16) + attention(16), f"what the default misses is both, {missing} of {flops(4, 16, 'eager')}")
EOF
