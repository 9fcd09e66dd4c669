#!/bin/sh
# Guess: a SmolLM3 that lost a block is refused until both of its lists by block are as long as it is deep: `layer_types` and `no_rope_layers`.
# Seen (transformers 5.23.0): `layer_types` of another length is refused by name. `no_rope_layers` that is too long is taken without a
#   word: every block after the gap takes the entry of the block before it, rotates where it did not (or the other way round), and the
#   model computes something else. One that is too short ends in a bare IndexError.
# For users of Trimline: every list by block is cut with its blocks, whatever it is called, and the rebuild gate compares logits.
#   A folder that another tool cut may be wrong in this way and still load.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import json
from pathlib import Path

import torch
from seen import seen
from transformers import AutoModelForCausalLM, SmolLM3Config, SmolLM3ForCausalLM

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
torch.manual_seed(0)
config = SmolLM3Config(**sizes, **ids, num_hidden_layers=4, no_rope_layers=[1, 0, 1, 1], initializer_range=0.2)
dense = SmolLM3ForCausalLM(config).eval()
del dense.model.layers[1]  # the block that does not rotate
dense.config.num_hidden_layers = 3
dense.config.layer_types = dense.config.layer_types[:3]
dense.save_pretrained("cut")
tokens = torch.arange(3, 24)[None]


def difference() -> float:
    with torch.no_grad():
        opened = AutoModelForCausalLM.from_pretrained("cut").eval()
        return float((opened(tokens, use_cache=False).logits - dense(tokens, use_cache=False).logits).abs().max())


def say(**keys: object) -> None:
    path = Path("cut/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


seen(json.loads(Path("cut/config.json").read_text())["no_rope_layers"] == [1, 0, 1, 1], "the saved list has four entries for three blocks")
seen((wrong := difference()) > 0.1, f"it opens without a word, and logits are off by {wrong:.1f}")
say(no_rope_layers=[1, 1, 1])
seen((right := difference()) < 1e-4, f"with the list cut as the blocks were they are off by {right:.0e}")
say(layer_types=["full_attention"] * 4)
try:
    difference()
    error = ""
except Exception as raised:  # a class of huggingface_hub
    error = str(raised)
seen("layer_types" in error, "the neighbouring list of another length is refused by name")
EOF
