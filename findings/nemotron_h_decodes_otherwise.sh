#!/bin/sh
# Guess: decoding with a cache gives the logits of one pass over the same tokens, as for every model of transformers, up to rounding.
# Seen (transformers 5.23.0): not for Nemotron-H where time steps are short. One pass over many tokens bounds them from below by
#   `time_step_min` (0.001 by default), and the step over one token, which the cache is for, does not. fp64 does not help, and with
#   a bound that no step comes near both agree. The class starts time steps between 0.001 and 0.1, so that its own start is at the bound.
# For users of Trimline: the rebuild gate compares decoding with one pass. Where the dense model itself decodes otherwise, it compares the
#   smaller model with its cache with the dense one with its own, and says so.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 numpy==2.4.6
python <<'EOF'
import math

import torch
from seen import seen
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16, n_groups=2)
SIZES |= dict(mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, chunk_size=16, max_position_embeddings=64, initializer_range=0.3)


def model(shortest: float) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "nemotron_h", **SIZES, layers_block_type=["linear_attention", "full_attention", "mlp"], time_step_min=shortest
    )
    made = AutoModelForCausalLM.from_config(config).eval().double()
    for name, parameter in made.named_parameters():
        if name.endswith("dt_bias"):  # softplus of it is the time step: 0.001, where the class begins
            parameter.data.fill_(math.log(math.expm1(0.001)))
    return made


@torch.no_grad()
def difference(made: PreTrainedModel) -> float:
    """Largest difference of logits between one pass over 32 tokens, and a prompt of 16 with 16 steps behind it."""
    tokens = torch.randint(3, 64, (1, 32), generator=torch.Generator().manual_seed(1))
    output = made(tokens[:, :16], use_cache=True)
    steps = [output.logits[:, -1]]
    for place in range(16, 32):
        output = made(tokens[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits[:, -1])
    return float((made(tokens, use_cache=False).logits[:, 15:] - torch.stack(steps, 1)).abs().max())


seen((off := difference(model(0.001))) > 1e-4, f"with the bound of its config, decoding is off by {off:.1e} in fp64")
seen((same := difference(model(1e-9))) < 1e-5, f"with a bound that no step comes near, both agree to {same:.0e}")
EOF
