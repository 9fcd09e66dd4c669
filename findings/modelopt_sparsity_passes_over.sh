#!/bin/sh
# Guess: `mts.sparsify(model, "sparse_magnitude")` makes every projection of the blocks 2:4, or says which it leaves out.
# Seen (nvidia-modelopt 0.47.0, transformers 5.23.0): it names what it takes, and passes over the rest without a word: the experts of a
#   mixture, which transformers 5 holds stacked (most of the model), and every projection whose outputs are no multiple of 8 or whose
#   inputs are none of 16, though 2:4 asks for a multiple of four. With 88 channels down_proj stays dense, with 100 the whole FFN does.
# For users of Trimline: an FFN width left by pruning, or a mixture, turns "2:4" into a model of which a part is. Choose multiples of 16
#   (`round_to` is 64 here), and count zeros.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 safetensors==0.8.0 numpy==2.4.6 \
    accelerate==1.15.0 datasets==5.2.0 requests==2.34.2
python 2>/dev/null <<'EOF'
import contextlib
import io

import modelopt.torch.sparsity as mts
import torch
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16)


def zeros(model: PreTrainedModel) -> tuple[float, float, str]:
    """Shares of zeros in attention and in the FFN or experts, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        model = mts.sparsify(model, "sparse_magnitude")
        model = mts.export(model)
    parts = {"self_attn": [], "mlp": []}
    for name, weight in model.model.layers[0].named_parameters():
        if weight.dim() > 1 and name != "mlp.gate.weight":  # a router
            parts[name.split(".")[0]].append((weight == 0).flatten())
    return *(float(torch.cat(part).float().mean()) for part in parts.values()), said.getvalue()


for width in (96, 112):
    attention, ffn, _ = zeros(LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=width)))
    seen((attention, ffn) == (0.5, 0.5), f"FFN of {width} channels: half of all weights are zeros")
attention, ffn, said = zeros(LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=88)))
third = (attention, round(ffn, 3)) == (0.5, 0.333)
seen(third and "down_proj" not in said, "FFN of 88 channels: down_proj is dense, and nothing is said of it")
attention, ffn, said = zeros(LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=100)))
seen((attention, ffn) == (0.5, 0) and "mlp" not in said, "FFN of 100 channels: all three are dense, and nothing is said of it")
mixture = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2))
attention, ffn, said = zeros(mixture)
seen((attention, ffn) == (0.5, 0) and "mlp" not in said, "experts of 32 channels: dense, and nothing is said of it")
EOF
