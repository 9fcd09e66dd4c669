#!/bin/sh
# Guess: transformers' `gguf_file=` either reads what changes a model's numbers (frequency factors of Llama 3.1, a linear scaling, the caps
#   of Gemma 2), or says that it did not.
# Seen (transformers 5.23.0, gguf 0.19.0): base, sizes and windows are read. The tensor `rope_freqs.weight`, by which llama.cpp's converter
#   hands on Llama 3.1's scaling, the keys of a linear scaling, and both of Gemma 2's caps are passed over: nothing is unexpected or
#   missing, and the config has no scaling, and Gemma 2's published caps whatever the file says. llama.cpp reads all of them.
# For users of Trimline: a model taken from such a file starts from other positions than the file means. Take the published folder, or
#   compare the config with the file's keys.
. "$(dirname "$0")/lib.sh"
packages torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6 gguf==0.19.0 accelerate==1.15.0
python 2>/dev/null <<'EOF'
import gguf
import numpy as np
from seen import seen
from transformers import AutoModelForCausalLM, PreTrainedModel

HIDDEN, WIDTH, WORDS, HEADS, GROUPS, HEAD = 64, 96, 64, 4, 2, 16


def opened(kind: str, *, base: float = 1e4, factors: bool = False, linear: bool = False, caps: bool = False) -> PreTrainedModel:
    """A file with two blocks, by transformers; whatever it does not place or find is an error here."""
    writer, random = gguf.GGUFWriter("model.gguf", kind), np.random.default_rng(0)
    writer.add_block_count(2), writer.add_context_length(4096), writer.add_embedding_length(HIDDEN), writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS), writer.add_head_count_kv(GROUPS), writer.add_layer_norm_rms_eps(1e-5)
    writer.add_key_length(HEAD), writer.add_value_length(HEAD), writer.add_rope_dimension_count(HEAD), writer.add_rope_freq_base(base)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("default"), writer.add_token_list([f"t{n}" for n in range(WORDS)])
    if linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), writer.add_rope_scaling_factor(4.0)
    if caps:
        writer.add_attn_logit_softcapping(20.0), writer.add_final_logit_softcapping(10.0)
    shapes = {"token_embd": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    if kind == "llama":  # Gemma 2 has a tied head
        shapes["output"] = (WORDS, HIDDEN)
    norms = ["attn_norm", "ffn_norm"] + (["post_attention_norm", "post_ffw_norm"] if kind == "gemma2" else [])
    for block in range(2):
        parts = {"ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN), "ffn_down": (HIDDEN, WIDTH)} | dict.fromkeys(norms, (HIDDEN,))
        parts |= {"attn_q": (HEADS * HEAD, HIDDEN), "attn_output": (HIDDEN, HEADS * HEAD)}
        parts |= dict.fromkeys(("attn_k", "attn_v"), (GROUPS * HEAD, HIDDEN))
        shapes |= {f"blk.{block}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
    if factors:
        writer.add_tensor("rope_freqs.weight", np.full(HEAD // 2, 8.0, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    model, report = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", output_loading_info=True)
    assert not any(report.values()), report
    return model


def slowest(model: PreTrainedModel) -> float:
    """The last inverse frequency, times the base's own denominator: 1 without scaling and base 10000."""
    return round(float(model.model.rotary_emb.inv_freq[-1]) * 1e4 ** (7 / 8), 3)


seen(slowest(opened("llama")) == 1, "llama, base 10000: its frequencies")
seen(slowest(opened("llama", base=5e5)) < 0.1, "llama, base 500000: the key is read")
seen(slowest(opened("llama", factors=True)) == 1, "llama, factors of 8: passed over, and not among what is unexpected")
seen(slowest(opened("llama", linear=True)) == 1, "llama, linear scaling by 4: passed over")
config = opened("gemma2", caps=True).config
caps = (config.attn_logit_softcapping, config.final_logit_softcapping)
seen(caps == (50.0, 30.0), f"gemma2, caps of 20 and 10: the config has {caps}")
EOF
