#!/bin/sh
# Guess: a weight of zero is zero in any of llama.cpp's types: a 2:4 model is still 2:4 in Q4_K_M, at worst with further zeros.
# Seen (llama.cpp 0.5.0 as @node-llama-cpp/linux-x64 3.22.1 brings it, gguf 0.19.0): types that store a smallest value per group (Q4_K, Q5_K,
#   Q4_1, Q5_1) have no zero: next to none of the model's zeros are left. Q6_K, Q8_0, Q4_0 and Q5_0 keep them all. Q4_K_M is a mix of
#   Q4_K and Q6_K, so that some matrices stay sparse and most do not.
# For users of Trimline: single weights that were pruned are not gone in a k-quant; they come back as small numbers, and nothing gains from
#   them. Perplexity of the sparse model says nothing of that file.
. "$(dirname "$0")/lib.sh"
packages gguf==0.19.0 numpy==2.4.6
llama_cpp
python 2>/dev/null <<'EOF'
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import quantise
from seen import seen

HIDDEN, WIDTH, BLOCKS, WORDS, HEADS = 256, 512, 4, 256, 4
FILES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama.cpp's numbers


def sparse(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Two of every four weights are zero, the smaller ones."""
    groups = random.standard_normal(shape, np.float32).reshape(-1, 4)
    np.put_along_axis(groups, np.argsort(np.abs(groups), 1)[:, :2], 0, 1)
    return groups.reshape(shape)


def write() -> dict[str, np.ndarray]:
    writer, random = gguf.GGUFWriter("full.gguf", "llama"), np.random.default_rng(0)
    writer.add_block_count(BLOCKS), writer.add_context_length(64), writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH), writer.add_head_count(HEADS), writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("default"), writer.add_token_list([f"t{n}" for n in range(WORDS)])
    shapes = {"token_embd": (WORDS, HIDDEN), "output": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(BLOCKS):
        parts = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "ffn_down": (HIDDEN, WIDTH)}
        parts |= dict.fromkeys(("ffn_gate", "ffn_up"), (WIDTH, HIDDEN))
        parts |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (HIDDEN, HIDDEN))
        shapes |= {f"blk.{block}.{name}": shape for name, shape in parts.items()}
    held = {f"{name}.weight": sparse(shape, random) for name, shape in shapes.items()}
    for name, tensor in held.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return held


def kept(held: dict[str, np.ndarray], file_type: int) -> dict[str, float]:
    """Of the blocks' projections, by the type that each got: the share of the model's zeros that are zeros still."""
    quantise(file_type)
    shares: dict[str, list[float]] = {}
    for tensor in gguf.GGUFReader("small.gguf").tensors:
        if tensor.name.startswith("blk.") and "norm" not in tensor.name:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shares.setdefault(tensor.tensor_type.name, []).append(float((values[held[tensor.name] == 0] == 0).mean()))
    return {kind: round(sum(each) / len(each), 3) for kind, each in shares.items()}


held = write()
for name in ("Q4_0", "Q5_0", "Q8_0", "Q6_K"):
    found = kept(held, FILES[name])
    seen(set(found.values()) == {1.0}, f"{name}: every zero stays zero {found}")
for name in ("Q4_1", "Q5_1"):
    found = kept(held, FILES[name])
    seen(max(found.values()) < 0.02, f"{name}: next to none does {found}")
for name, kind in {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}.items():
    found = kept(held, FILES[name])
    seen(found["Q6_K"] == 1 and found[kind] < 0.02, f"{name}: {kind} keeps next to none, Q6_K all {found}")
EOF
