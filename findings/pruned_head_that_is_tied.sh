#!/bin/sh
# Guess: `prune.remove`, which "makes pruning permanent", leaves the model's outputs as they were. On a head that is tied to the token
#   table it either unties the two, or both are pruned from the first call on.
# Seen (torch 2.13.0, transformers 5.23.0): neither. While the mask is on, the head is pruned and the token table is whole; `remove` writes
#   the zeros into the tensor that both share, and every input of the model loses half of its embedding. Logits change with `remove`,
#   and what is saved is the second model. On a head of its own `remove` changes nothing.
# For users of Trimline: what was measured with masks on is not what the folder holds. Untie first, or leave a tied head alone, as
#   sparsity does here.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
import torch
import torch.nn.utils.prune
from seen import seen
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
tokens = torch.arange(3, 27)[None]


@torch.no_grad()
def pruned(tied: bool) -> tuple[float, float, float]:
    """Share of zeros in the token table with the mask on and after `remove`, and how far `remove` moves logits."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied, initializer_range=0.2)).eval()
    table = model.model.embed_tokens.weight
    torch.nn.utils.prune.l1_unstructured(model.lm_head, "weight", 0.5)
    before, masked = model(tokens, use_cache=False).logits, float((table == 0).float().mean())
    torch.nn.utils.prune.remove(model.lm_head, "weight")
    after = model(tokens, use_cache=False).logits
    return masked, float((table == 0).float().mean()), float((after - before).abs().max())


masked, removed, moved = pruned(tied=True)
seen(masked == 0, "tied: with the mask on, the token table has no zeros")
seen(removed == 0.5 and moved > 0.1, f"tied: after `remove` half of it is zeros, and logits have moved by {moved:.1f}")
masked, removed, moved = pruned(tied=False)
seen(masked == removed == moved == 0, "a head of its own: the table stays whole, and `remove` moves nothing")
EOF
