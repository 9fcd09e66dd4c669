#!/bin/sh
# Guess: a folder that transformers 5 wrote opens in 4.57 (same class, same tensors) and computes the same, or is refused.
# Seen (written by transformers 5.23.0, read by 4.57.6): it opens without a word, every tensor is in its place, and the rotary embedding is
#   another one. 5 writes base and scaling under `rope_parameters` only; 4.57 looks for `rope_theta` and `rope_scaling`, does not
#   find them and takes its class's defaults: 10000 for Llama, Qwen2 and Qwen3 instead of a million, and no scaling. With both old
#   keys added to the file, it computes the same.
# For users of Trimline: anything that goes through transformers 5's save_pretrained (a merged adapter, a trained model) and is then
#   read by an older transformers, or by a tool that knows the old keys, is quietly another model. Compare logits there, or add both.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
cat >written.py <<'EOF'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=1024)
ROTARY = {
    "llama": {"rope_theta": 1e6},
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"rope_theta": 1e6},
    "llama-scaled": {"rope_parameters": LLAMA3 | {"rope_theta": 1e6}},
    "llama-plain": {"rope_theta": 1e4},
}
for name, rotary in ROTARY.items():
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split("-")[0], **SIZES, **rotary, max_position_embeddings=8192, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(name)
    with torch.no_grad():
        torch.save(model(torch.arange(3, 35)[None], use_cache=False).logits, f"{name}.pt")
EOF
env/bin/python -W ignore written.py
env/bin/pip install --quiet --no-compile transformers==4.57.6 >install.log 2>&1 ||
    { tail -n 5 install.log; echo "not looked at: could not install transformers 4.57.6"; exit 2; }
python <<'EOF'
import json
from pathlib import Path

import torch
import transformers
from seen import seen

assert transformers.__version__ == "4.57.6"


def difference(name: str) -> float:
    """Largest difference of logits to those of the model that wrote the folder."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        return float((model.eval()(torch.arange(3, 35)[None], use_cache=False).logits - torch.load(f"{name}.pt")).abs().max())


seen((plain := difference("llama-plain")) < 1e-3, f"a base of 10000 is read as written ({plain:.0e})")
for name in ("llama", "qwen2", "qwen3", "llama-scaled"):
    path = Path(name) / "config.json"
    config = json.loads(path.read_text())
    rotary = config["rope_parameters"]
    seen("rope_theta" not in config and rotary["rope_theta"] == 1e6, f"{name}: the base, a million, stands under rope_parameters alone")
    seen((off := difference(name)) > 0.5, f"{name}: opens with nothing to report, and logits are off by {off:.1f}")
    scaling = rotary if rotary["rope_type"] != "default" else None
    path.write_text(json.dumps(config | {"rope_theta": rotary["rope_theta"], "rope_scaling": scaling}))
    seen((same := difference(name)) < 1e-3, f"{name}: with rope_theta and rope_scaling added they agree ({same:.0e})")
EOF
