#!/bin/sh
# Guess: `from_pretrained(folder).to(torch.bfloat16)` is the model that `from_pretrained(folder, dtype=torch.bfloat16)` gives.
# Seen (torch 2.13.0, transformers 5.23.0): weights are the same bit for bit, the rotary embedding is not. Its frequencies are a buffer that
#   loading keeps in fp32 and that `.to` and `.half` round. Positions are multiplied by them, so that cosines are off by 0.15 at
#   position 1000 and by more than 1 at 8000 in bf16; nothing of it is in a saved file, and going back to fp32 does not bring it back.
# For users of Trimline: recovery or perplexity on long texts with a model that was cast after loading is of another model, and the folder
#   it saves is fine when it is opened again. Give `dtype` when loading.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=8192)).save_pretrained("model")


def opened(**more: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained("model", **more)


exact = opened(dtype=torch.float32)


def error(model: PreTrainedModel, position: int) -> float:
    """Of the cosines at that position, which both compute in fp32 from their frequencies."""
    rows = [each.model.rotary_emb(torch.zeros(1, 1, 1), torch.tensor([[position]]))[0] for each in (exact, model)]
    return float((rows[0] - rows[1]).abs().max())


loaded, cast = opened(dtype=torch.bfloat16), opened(dtype=torch.float32).to(torch.bfloat16)
same = all(torch.equal(one, other) for one, other in zip(loaded.parameters(), cast.parameters(), strict=True))
seen(same, "loaded as bf16 and cast to bf16: every parameter is the same")
seen(error(loaded, 8000) == 0, "loaded as bf16: cosines are those of fp32")
near, far = error(cast, 1000), error(cast, 8000)
seen(near > 0.1 and far > 1, f"cast to bf16: cosines are off by {near:.2f} at 1000, by {far:.2f} at 8000")
seen(error(cast.float(), 8000) == far, "cast back to fp32: they stay so")
far = error(opened(dtype=torch.float32).half(), 8000)
seen(far > 0.1, f"cast to fp16: off by {far:.2f} at 8000")
EOF
