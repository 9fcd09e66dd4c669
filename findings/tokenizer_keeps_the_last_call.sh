#!/bin/sh
# Guess: `truncation=True, max_length=8` is said for one call; what `save_pretrained` writes does not depend on the calls before.
# Seen (transformers 5.23.0, tokenizers 0.23.3): the last call's truncation or padding is written into tokenizer.json. transformers
#   does not mind when it reads it; the tokenizers library, on which servers and other languages' readers stand, cuts every
#   text to those 8 tokens, or pads it to the last call's length. A plain call before saving clears it.
# For users of Trimline: cutting calibration windows or batching an evaluation and then saving the tokenizer beside the pruned
#   model makes a folder that transformers serves well and others serve cut. Copy tokenizer.json as a file instead.
. "$(dirname "$0")/lib.sh"
packages transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
python <<'EOF'
from seen import seen
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(40)} | {"[PAD]": 40}))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
text = " ".join(f"w{number}" for number in range(30))


def lengths_after_saving() -> tuple[int, int]:
    """Tokens of the text by the tokenizers library and by transformers, from what is saved now."""
    tokenizer.save_pretrained("saved")
    return len(Tokenizer.from_file("saved/tokenizer.json").encode(text).ids), len(AutoTokenizer.from_pretrained("saved")(text).input_ids)


tokenizer(text, truncation=True, max_length=8)
seen(lengths_after_saving() == (8, 30), "after a call that cut to 8: tokenizers gives 8 of 30 tokens, transformers 30")
tokenizer(["w1", "w2"], padding="max_length", max_length=64)
seen(lengths_after_saving() == (64, 30), "after a call that padded to 64: 64 and 30")
tokenizer(text)
seen(lengths_after_saving() == (30, 30), "after a plain call: 30 and 30")
EOF
