#!/bin/sh
# Guess: position_ids say where tokens stand; every token still attends to all before it.
# Seen (transformers 5.23.0): without an attention_mask, positions that jump are taken for several texts packed into one row, and what
#   stands behind the jump does not see what stands before it. With a mask of ones it does.
# For users of Trimline: whoever tests rotary tables far out by giving late positions to a short prompt compares two models that
#   both see half of it. Give a mask of ones, as the gates here do.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=512)).eval()
tokens = torch.randint(0, 64, (1, 12))
jump = torch.cat((torch.arange(6), torch.arange(200, 206)))[None]


@torch.inference_mode()
def logits(start: int = 0, **more: torch.Tensor) -> torch.Tensor:
    """Of the last six tokens."""
    return model(tokens[:, start:], position_ids=jump[:, start:], use_cache=False, **more).logits[:, -6:]


seen(torch.allclose(logits(), logits(start=6), atol=1e-5), "without a mask, what stands behind the jump is computed as if it stood alone")
masked = logits(attention_mask=torch.ones_like(tokens))
seen(not torch.allclose(masked, logits(), atol=1e-2), "with a mask of ones it sees what stands before")
straight = torch.arange(12)[None]
with torch.inference_mode():
    same = [model(tokens, position_ids=straight, use_cache=False, **more).logits for more in ({}, {"attention_mask": torch.ones_like(tokens)})]
seen(torch.allclose(*same, atol=1e-5), "without a jump the mask changes nothing")
EOF
