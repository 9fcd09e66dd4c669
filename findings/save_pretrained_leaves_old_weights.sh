#!/bin/sh
# Guess: saving a model into a folder that holds an older one replaces it. Shards of an older save are removed, so one
#   `model.safetensors` goes as well; where both lie there, the index wins, being the newer form.
# Seen (transformers 5.23.0): saved in shards, the old `model.safetensors` stays beside the new shards and their index, and
#   `from_pretrained` takes the old single file, without a word. The other way round all is well: shards are removed.
# For users of Trimline: what comes out of training (larger shards, fp32 instead of bf16) and is saved over the pruned folder
#   may be evaluated as the untrained model. Save into an empty folder, and look for both forms where a folder came from others.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
python <<'EOF'
from pathlib import Path

import torch
from seen import seen
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes))
model.save_pretrained("model")
old = model.lm_head.weight.detach().clone()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(1)
model.save_pretrained("model", max_shard_size="50KB")
names = {path.name for path in Path("model").iterdir()}
seen({"model.safetensors", "model.safetensors.index.json"} <= names, "the old single file stays beside the new index")
again, report = AutoModelForCausalLM.from_pretrained("model", output_loading_info=True)
seen(torch.equal(again.lm_head.weight, old), "from_pretrained takes the old weights")
seen(not any(report.values()), "its report has nothing to say")

model.save_pretrained("other", max_shard_size="50KB")
model.save_pretrained("other")
seen(not list(Path("other").glob("model-0*")), "the other way round the old shards are removed")
EOF
