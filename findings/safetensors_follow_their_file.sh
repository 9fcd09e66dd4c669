#!/bin/sh
# Guess: a tensor that was read from a safetensors file is memory of one's own; what happens to the file later is no matter.
# Seen (safetensors 0.8.0, torch 2.13.0, transformers 5.23.0, Linux): the tensors are pages of the mapped file.
#   Asking an open file twice for one tensor gives the same memory: a change in place to the first is a change to the second.
#   The file itself keeps its bytes. But bytes written into the file by others, without replacing it, appear in tensors that were
#   read before, in those of a whole model that `from_pretrained` loaded too, as long as nobody has touched that page.
# For users of Trimline: zero or scale copies (`tensor.clone()`), never what `get_tensor` returned, where dense weights are
#   compared with pruned ones. Write a checkpoint beside the old one and rename it; a tool that patches the file in place
#   changes the model that another process evaluates at that moment.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

save_file({"weight": torch.zeros(64, 64)}, "one.safetensors")
with safe_open("one.safetensors", "pt") as file:
    dense, pruned = file.get_tensor("weight"), file.get_tensor("weight")
    pruned += 1
seen(bool(dense[0, 0] == 1), "two reads of one tensor share memory: adding to the second changed the first")
seen(bool(load_file("one.safetensors")["weight"][0, 0] == 0), "the file keeps its bytes")

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model")
path = Path("model/model.safetensors")
start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
with path.open("r+b") as file:  # same length, same file: nothing is cut off or replaced
    file.seek(start)
    file.write(bytes(path.stat().st_size - start))
left = sum(parameter.abs().sum().item() for parameter in model.parameters())
seen(left == 0, "a model loaded before is all zeros after zeros were written into its file")
EOF
