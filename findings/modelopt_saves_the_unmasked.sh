#!/bin/sh
# Guess: after modelopt's `sparsify` the model is sparse, and save_pretrained writes sparse weights.
# Seen (nvidia-modelopt 0.47.0, transformers 5.23.0): in memory `weight` is half zeros and logits are the sparse model's. The file holds the
#   dense weights and a mask beside each. Opened by transformers alone, the folder is the dense model; masks are listed as unexpected,
#   among what "can be ignored". After `mts.export` the same call writes zeros.
# For users of Trimline: a 2:4 folder made by modelopt may be no such thing. Count zeros in the file, or call `mts.export` before saving.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 nvidia-modelopt==0.47.0 safetensors==0.8.0 numpy==2.4.6 \
    accelerate==1.15.0 datasets==5.2.0 requests==2.34.2
python 2>/dev/null <<'EOF'
import contextlib
import io

import modelopt.torch.sparsity as mts
import torch
from safetensors.torch import load_file
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
NAME = "model.layers.0.mlp.down_proj.weight"
tokens = torch.arange(3, 27)[None]


def zeros(weight: torch.Tensor) -> float:
    return float((weight == 0).float().mean())


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(tokens, use_cache=False).logits


torch.manual_seed(0)
dense = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.1))
before = logits(dense)
with contextlib.redirect_stdout(io.StringIO()):  # it names every module
    model = mts.sparsify(dense, "sparse_magnitude")
after = logits(model)
seen(zeros(model.get_submodule(NAME.removesuffix(".weight")).weight) == 0.5, "in memory, half of the weights are zeros")
seen(not torch.allclose(before, after, atol=1e-2), "and logits are no longer the dense model's")
model.save_pretrained("saved")
seen(zeros(load_file("saved/model.safetensors")[NAME]) == 0, "what save_pretrained writes has no zeros")
opened = logits(AutoModelForCausalLM.from_pretrained("saved"))
seen(torch.allclose(opened, before, atol=1e-4), "opened by transformers it is the dense model")
mts.export(model).save_pretrained("exported")
seen(zeros(load_file("exported/model.safetensors")[NAME]) == 0.5, "after mts.export the file has the zeros")
opened = logits(AutoModelForCausalLM.from_pretrained("exported"))
seen(torch.allclose(opened, after, atol=1e-4), "and opens as the sparse model")
EOF
