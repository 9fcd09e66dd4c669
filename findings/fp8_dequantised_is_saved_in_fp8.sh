#!/bin/sh
# Guess: a checkpoint in fp8 that is loaded with FineGrainedFP8Config(dequantize=True) is a bf16 model, and save_pretrained writes bf16.
# Seen (transformers 5.23.0): in memory it is bf16. save_pretrained writes fp8 and scales again, of embedding and head too, which were not
#   quantised before, and its config.json says nothing of it. `save_original_format=False` writes bf16.
# For users of Trimline: this is how one would make a folder that can be pruned. Without that argument the new folder holds numbers without
#   their meaning; opening it is refused here by its tensors, since its config does not tell.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 accelerate==1.15.0
python <<'EOF'
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from seen import seen
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained("fp8")
stored = {}
for name, weight in load_file("fp8/model.safetensors").items():
    stored[name] = weight
    if "proj" in name:  # as published fp8 checkpoints have it
        scale = (weight.abs().amax() / 448).float()
        stored[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale.expand((weight.shape[0] + 127) // 128, (weight.shape[1] + 127) // 128).contiguous()
save_file(stored, "fp8/model.safetensors", {"format": "pt"})
config = json.loads(Path("fp8/config.json").read_text())
config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
Path("fp8/config.json").write_text(json.dumps(config))

model = AutoModelForCausalLM.from_pretrained("fp8", quantization_config=FineGrainedFP8Config(dequantize=True))
seen({parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}, "in memory every tensor is bf16")
model.save_pretrained("saved")
saved = load_file("saved/model.safetensors")
seen(saved["model.layers.0.mlp.down_proj.weight"].dtype == torch.float8_e4m3fn, "save_pretrained writes fp8 again")
seen(saved["model.embed_tokens.weight"].dtype == torch.float8_e4m3fn, "of the embedding too, which was bf16 before")
seen("quantization_config" not in json.loads(Path("saved/config.json").read_text()), "and config.json does not say so")
model.save_pretrained("whole", save_original_format=False)
kinds = {tensor.dtype for tensor in load_file("whole/model.safetensors").values()}
seen(kinds == {torch.bfloat16}, "with save_original_format=False all is bf16")
EOF
