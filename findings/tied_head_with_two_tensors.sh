#!/bin/sh
# Guess: where config.json says `tie_word_embeddings: true`, the token table is the output head; a stored lm_head.weight that
#   differs is left aside, by everyone.
# Seen: transformers 5.23.0 takes both tensors and leaves them untied (a warning; the config goes on saying true, also
#   when saved again). onnxruntime-genai 0.18.0's builder takes lm_head for the head *and* for the token table. Three readings of
#   one folder: neither agrees with the guess.
# For users of Trimline: such a folder comes from training that touched the head of a tied model (peft's `modules_to_save`), or
#   from folding a norm into the head. Set `tie_word_embeddings: false` in its config before anything reads it.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 tokenizers==0.23.3 \
    onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 onnx-ir==1.1.0
python <<'EOF'
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
import torch
from seen import seen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=253, eos_token_id=254, pad_token_id=255)).save_pretrained("model")
config = json.loads(Path("model/config.json").read_text())
Path("model/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
words = Tokenizer(models.BPE(vocab={chr(40 + number): number for number in range(256)}, merges=[]))
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained("model")

model = AutoModelForCausalLM.from_pretrained("model")
table, head = model.model.embed_tokens.weight, model.lm_head.weight
seen(not torch.equal(table, head) and model.config.tie_word_embeddings, "transformers keeps two tensors in a model that says tied")

command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", "model", "-o", "onnx", "-p", "fp32", "-e", "cpu", "-c", "cache"]
subprocess.run(command, check=True, capture_output=True)
parameters = genai.GeneratorParams(built := genai.Model("onnx"))
parameters.set_search_options(max_length=32)
generator = genai.Generator(built, parameters)
generator.append_tokens(np.array([[5, 6, 7]], np.int32))
logits = generator.get_output("logits")[0, -1]
far = {}
for name, pair in {"both, untied": (table, head), "the table twice": (table, table), "the head twice": (head, head)}.items():
    model.model.embed_tokens.weight, model.lm_head.weight = pair
    far[name] = float(np.abs(logits - model(torch.tensor([[5, 6, 7]])).logits[0, -1].detach().numpy()).max())
seen(far["the head twice"] < 1e-4 < 0.1 < min(far["both, untied"], far["the table twice"]), f"the builder takes the head twice: {far}")
EOF
