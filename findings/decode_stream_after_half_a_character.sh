#!/bin/sh
# Guess: a DecodeStream that is given the prompt's ids gives out what comes after them, and nothing of the prompt.
# Seen (tokenizers 0.23.3): where the ids end within a character (byte-level BPE, or bytes as a fallback), the first step that completes it
#   gives out the whole prompt again. Ids that end with a whole character give out the new text alone.
# For users of Trimline: a server that streams from ids of its clients meets this. `trimline serve` and the Triton backend prime the
#   stream with whole characters only (deploy/pieces.py).
. "$(dirname "$0")/lib.sh"
packages tokenizers==0.23.3
python <<'EOF'
from seen import seen
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
words = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
ids = words.encode("ab€cd").ids  # a token for each byte; the euro sign has three


def given_out(prompt: int) -> str:
    """What a stream says after that many ids as a prompt."""
    stream = DecodeStream(ids=ids[:prompt], skip_special_tokens=True)
    return "".join(stream.step(words, token) or "" for token in ids[prompt:])


seen(given_out(2) == "€cd" and given_out(5) == "cd", "after whole characters the new text alone is given out")
for prompt in (3, 4):
    seen(given_out(prompt) == "ab€cd", f"after {prompt - 2} of the 3 bytes of a character the prompt is given out again")
EOF
