#!/bin/sh
# Guess: `resize_token_embeddings` to fewer words refuses, or at least names, special tokens that are no longer among them; what it makes
#   works, so it can be saved and opened.
# Seen (transformers 5.23.0): the model works and is saved; the folder cannot be opened again, by Llama, Mistral, Qwen3 and Gemma 2. The
#   config keeps the pad token's old number, which in memory nothing asks for; opening ends in an AssertionError about `padding_idx` that
#   names neither the config nor the token. An end token beyond the table opens, and can never be said.
# For users of Trimline: whoever takes words out, before or after pruning, sets pad, begin and end tokens in config.json and
#   generation_config.json at the same time. A published pad token is often the last of the
#   table. Such a folder is refused here by that name.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python 2>/dev/null <<'EOF'
import torch
from seen import seen
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)


def opening(family: str, pad: int | None) -> str:
    """How opening the saved folder ends after the table went from 64 to 32 words; nothing where it opens."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, pad_token_id=pad, bos_token_id=1, eos_token_id=62))
    model.resize_token_embeddings(32)
    assert model(torch.arange(24)[None]).logits.shape[-1] == 32
    model.save_pretrained(family)
    try:
        opened = AutoModelForCausalLM.from_pretrained(family)
    except AssertionError as raised:
        return str(raised)
    assert (opened.config.vocab_size, opened.config.eos_token_id) == (32, 62)
    return ""


for family in ("llama", "mistral", "qwen3", "gemma2"):
    seen("adding_idx" in (said := opening(family, 63)), f"{family}, pad token 63 of 64, cut to 32: saved, and opening ends in {said!r}")
    seen(opening(family, 3) == "", f"{family}, pad token 3: opens, its end token 62 beyond the table")
EOF
