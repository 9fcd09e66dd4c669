#!/bin/sh
# Guess: AutoModelForCausalLM.from_pretrained on a folder of weights reads the weights; an adapter that lies beside them waits for peft to
#   be called.
# Seen (transformers 5.23.0, peft 0.21.2): it is put on without a word where peft is installed, and passed over without a word where it
#   is not. The same folder is two models on two machines; the class is the stock one in both.
# For users of Trimline: training often leaves an adapter beside the model. What makes something of such a folder is refused here, and the
#   sentence says how to merge; what only measures says that it reads the weights alone.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0
cat >folder.py <<'EOF'
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained("folder")
name = "base_model.model.model.layers.0.self_attn.q_proj"
parts = {f"{name}.lora_A.weight": torch.randn(4, 32), f"{name}.lora_B.weight": torch.randn(32, 4)}
save_file(parts, "folder/adapter_model.safetensors", {"format": "pt"})
open("folder/adapter_config.json", "w").write('{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}')
EOF
env/bin/python -W ignore folder.py
cat >opened.py <<'EOF'
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("folder")
print(type(model).__name__, sum("lora" in name for name, _ in model.named_parameters()))
EOF
env/bin/python -W ignore opened.py 2>/dev/null >without.txt
env/bin/pip install --quiet --no-compile peft==0.21.2 >install.log 2>&1 || { tail -n 5 install.log; echo "not looked at: could not install peft"; exit 2; }
env/bin/python -W ignore opened.py 2>/dev/null >with.txt
python <<'EOF'
from pathlib import Path

from seen import seen

seen(Path("without.txt").read_text().split() == ["LlamaForCausalLM", "0"], "without peft the weights are read alone")
seen(Path("with.txt").read_text().split() == ["LlamaForCausalLM", "2"], "with peft the adapter is put on, and the class is the same")
EOF
