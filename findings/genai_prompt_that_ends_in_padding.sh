#!/bin/sh
# Guess: after `append_tokens(prompt)` onnxruntime-genai's `get_logits()` is the row of the prompt's last token, whatever that token is,
#   and the next token is chosen from it.
# Seen (onnxruntime-genai 0.18.0): where the prompt ends in the id that genai_config.json calls `pad_token_id`, once or more often,
#   it is the row of the last token before it, and generation goes on from there, while the sequence keeps the pads. The
#   graph's own output (`get_output("logits")`) is right. The same id in the middle or at the front is an ordinary token.
# For users of Trimline: models whose pad is their end-of-turn token (SmolLM2-Instruct) meet it with every prompt that ends with a
#   finished turn; a gate or a perplexity that takes `get_logits()` of windows cut at such a token sees a wrong row.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 tokenizers==0.23.3 \
    onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 onnx-ir==1.1.0
python <<'EOF'
import subprocess
import sys

import numpy as np
import onnxruntime_genai as genai
import torch
from seen import seen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD = 255
torch.manual_seed(0)
sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
model = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=253, eos_token_id=254, pad_token_id=PAD))
model.save_pretrained("model")
words = Tokenizer(models.BPE(vocab={chr(40 + number): number for number in range(256)}, merges=[]))
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained("model")
command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", "model", "-o", "onnx", "-p", "fp32", "-e", "cpu", "-c", "cache"]
subprocess.run(command, check=True, capture_output=True)
built = genai.Model("onnx")


def rows(prompt: list[int]) -> tuple[np.ndarray, np.ndarray, int]:
    """What get_logits says, the last row of the graph's output, and the next token."""
    parameters = genai.GeneratorParams(built)
    parameters.set_search_options(max_length=32, do_sample=False)
    generator = genai.Generator(built, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    picked, output = generator.get_logits().reshape(-1).copy(), generator.get_output("logits")[0, -1].copy()
    generator.generate_next_token()
    return picked, output, int(generator.get_sequence(0)[-1])


def truth(prompt: list[int]) -> np.ndarray:
    return model(torch.tensor([prompt])).logits[0, -1].detach().numpy()


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(one - other).max()) < 1e-4


for prompt in ([5, 6, 7], [5, PAD, 6, 7], [PAD, 5, 6, 7]):
    seen(close(rows(prompt)[0], truth(prompt)), f"{prompt} gives its own logits")
for prompt in ([5, 6, 7, PAD], [5, 6, 7, PAD, PAD]):
    picked, output, following = rows(prompt)
    seen(close(picked, truth([5, 6, 7])) and not close(picked, truth(prompt)), f"{prompt} gives those of [5, 6, 7], not its own")
    seen(close(output, truth(prompt)), f"{prompt}: the graph's output is its own")
    seen(following == truth([5, 6, 7]).argmax() != truth(prompt).argmax(), f"{prompt}: the next token is that of [5, 6, 7]")
EOF
