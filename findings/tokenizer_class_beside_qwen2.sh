#!/bin/sh
# Guess: tokenizer.json, and the class that tokenizer_config.json names, decide how a folder's text is split, whatever model lies beside them.
# Seen (transformers 5.23.0): with model_type qwen2, AutoTokenizer takes Qwen2's class whatever tokenizer_config.json names, and its own
#   normaliser and pre-tokeniser with it. With llama or mistral the same two files are split as tokenizer.json says.
# For users of Trimline: distilled Qwen2 models carry such files. A smaller checkpoint with another model_type would split texts
#   otherwise, so the rebuilt folder names the class that transformers takes for the source, and the gate compares ids.
. "$(dirname "$0")/lib.sh"
packages transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
python <<'EOF'
import json
from pathlib import Path

from seen import seen
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoConfig, AutoTokenizer

vocab = {f"<0x{number:02X}>": number for number in range(256)} | {"<unk>": 256, "<s>": 257, "</s>": 258, "▁": 259, "a": 260, "▁a": 261, "b": 262}
words = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], byte_fallback=True, unk_token="<unk>"))
words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def opened(model_type: str):
    """The same two files beside a config of that type."""
    folder = Path(model_type)
    AutoConfig.for_model(model_type).save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


stored = words.encode("a b").ids
for kind in ("llama", "mistral"):
    seen(opened(kind)("a b").input_ids[-len(stored) :] == stored, f"beside {kind}, text is split as tokenizer.json says")
other = opened("qwen2")
seen(type(other).__name__ == "Qwen2Tokenizer", "beside qwen2, the class that tokenizer_config.json names is not taken")
seen(other("a b").input_ids != stored, "and the same text gets other ids")
EOF
