#!/bin/sh
# Guess: a llama model whose FFN went from 1024 to 992 channels makes a slightly smaller Q4_K_M file than before; one of 600 channels
#   a much smaller one. Widths that the type cannot take are padded, or refused.
# Seen (llama.cpp 0.5.0 as @node-llama-cpp/linux-x64 3.22.1 brings it): K-quants need rows of a multiple of 256. ffn_down's rows are the
#   FFN's width: at 992 it is stored in Q5_0 and Q8_0 instead of Q4_K and Q6_K, and the file is *larger* than the dense one. At
#   1000, no multiple of 32, it becomes F16: 39 % larger; even 600 channels are larger than the dense 1024. Q4_0 has only the second
#   step. The call succeeds; a warning in the log is all.
# For users of Trimline: round FFN widths to 256 where K-quants follow, to 32 at least where anything in 4 bits does.
. "$(dirname "$0")/lib.sh"
packages gguf==0.19.0 numpy==2.4.6
llama_cpp
python 2>/dev/null <<'EOF'
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import quantise
from seen import seen

HIDDEN, BLOCKS, WORDS, HEADS = 512, 4, 512, 8
Q4_0, Q4_K_M = 2, 15  # numbers of llama.cpp's file types


def write(path: str, width: int) -> None:
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(BLOCKS), writer.add_context_length(64), writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(width), writer.add_head_count(HEADS), writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("default"), writer.add_token_list([f"t{n}" for n in range(WORDS)])
    square, wide = (HIDDEN, HIDDEN), (width, HIDDEN)
    shapes = {"token_embd": (WORDS, HIDDEN), "output": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(BLOCKS):
        parts = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
        parts |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square)
        shapes |= {f"blk.{block}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def quantised(width: int, file_type: int) -> tuple[int, set[str]]:
    """(bytes of the quantised file, types of its ffn_down)"""
    write("full.gguf", width)
    quantise(file_type)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader("small.gguf").tensors if "ffn_down" in tensor.name}
    return Path("small.gguf").stat().st_size, types


dense, kinds = quantised(1024, Q4_K_M)
seen(kinds == {"Q4_K", "Q6_K"}, f"1024 channels: ffn_down in Q4_K and Q6_K, {dense} bytes")
size, kinds = quantised(992, Q4_K_M)
seen(kinds == {"Q5_0", "Q8_0"} and size > dense, f"992 channels: in Q5_0 and Q8_0, {size} bytes, more than before")
size, kinds = quantised(1000, Q4_K_M)
seen(kinds == {"F16"} and size > 1.3 * dense, f"1000 channels: in F16, {size} bytes")
size, kinds = quantised(600, Q4_K_M)
seen(kinds == {"F16"} and size > dense, f"600 channels: in F16, {size} bytes, more than 1024 channels take")
size, kinds = quantised(768, Q4_K_M)
seen(kinds == {"Q4_K", "Q6_K"} and size < 0.9 * dense, f"768 channels: as at first, {size} bytes")
seen(quantised(992, Q4_0)[1] == {"Q4_0"}, "992 channels in Q4_0 stay Q4_0")
seen(quantised(1000, Q4_0)[1] == {"F16"}, "1000 channels in Q4_0 become F16")
EOF
