#!/bin/sh
# Guess: a family for which onnxruntime-genai's builder has a class is built from any folder that transformers writes of it, or is
#   refused by a sentence about the version.
# Seen (onnxruntime-genai 0.18.0, folders written by transformers 5.23.0): Gemma 3's text model ends in KeyError 'rope_type' (its rotary
#   parameters stand per kind of layer today), SmolLM3 in KeyError 'position_ids' (at its first layer without rotary). Llama, Qwen3,
#   Gemma 2 and Granite, written by the same release, are built.
# For users of Trimline: "has a class" is not "can be built". Try the folder; the portable lowering takes what the builder does not.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 tokenizers==0.23.3 \
    onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 onnx-ir==1.1.0
python <<'EOF'
import subprocess
import sys

import transformers
from seen import seen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
ids = dict(head_dim=16, max_position_embeddings=64, bos_token_id=253, eos_token_id=254, pad_token_id=255)
words = Tokenizer(models.BPE(vocab={chr(40 + number): number for number in range(256)}, merges=[]))
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)


def end(family: str) -> str:
    """The builder's last line where it failed, else nothing."""
    config = getattr(transformers, f"{family}Config")(**sizes, **ids)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(family)
    tokenizer.save_pretrained(family)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu", "-c", "cache"]
    done = subprocess.run([*builder, "-i", family, "-o", f"{family}-onnx"], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


for family, error in {"Gemma3Text": "KeyError: 'rope_type'", "SmolLM3": "KeyError: 'position_ids'"}.items():
    seen(end(family) == error, f"{family} ends in {error}")
for family in ("Llama", "Qwen3", "Gemma2", "Granite"):
    seen(end(family) == "", f"{family} is built")
EOF
