#!/bin/sh
# Guess: a folder that is opened holds what was saved in it, whichever token pads.
# Seen (transformers 5.23.0): a Youtu whose config names a pad token has zeros in that token's row of the embedding whenever it is
#   opened, and with a tied head a logit of 0 for it. Its class initialises every module once more behind the loading; writes to whole
#   parameters are held back where they were loaded, and the one to that row is not. A class derived from it outside transformers
#   keeps the row, and so computes something else of the same folder.
# For users of Trimline: a Youtu with a pad token that is rebuilt in profile `free` fails its gate, and one in `uniform` does not. Set
#   `pad_token_id` to null before pruning if that token stands for nothing else.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
from safetensors.torch import load_file
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
SIZES |= dict(bos_token_id=1, eos_token_id=2, max_position_embeddings=64)
LATENT = dict(q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10)
NAME = "model.embed_tokens.weight"


def row(made: torch.nn.Module, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of token 0: as it was saved, and as it is opened."""
    made.model.embed_tokens.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    made.save_pretrained(folder)
    return load_file(f"{folder}/model.safetensors")[NAME][0], AutoModelForCausalLM.from_pretrained(folder).get_parameter(NAME)[0]


saved, opened = row(YoutuForCausalLM(YoutuConfig(**SIZES, **LATENT, pad_token_id=0)), "youtu")
seen(float(saved.abs().max()) > 0.1, "the file holds the row of the pad token")
seen(float(opened.abs().max()) == 0.0, "opened by Youtu's class it is zeros")
saved, opened = row(YoutuForCausalLM(YoutuConfig(**SIZES, **LATENT, pad_token_id=None)), "without")
seen(torch.equal(saved, opened), "without a pad token it is what was saved")
saved, opened = row(LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0)), "llama")
seen(torch.equal(saved, opened), "so it is in a Llama with that pad token")
EOF
