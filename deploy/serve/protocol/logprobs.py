"""Tokens and how likely they were, as clients read them under ``logprobs``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs
from tokenizers import Tokenizer

from deploy.serve.protocol.chances import Chance

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Scored:
    """A chosen token in its answer; ``offset``: where in the answer its text begins, in characters."""

    chance: Chance
    offset: int


class TokenTexts:
    """What single tokens are as text, and as bytes.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
        steps = [state, *state.get("decoders", [])]
        self._alphabet = _alphabet() if any(step.get("type") == "ByteLevel" for step in steps) else {}
        # Decoders drop the blank before the first word: every token is read behind another one.
        self._before = tokenizer.encode("a", add_special_tokens=False).ids[-1:]

    def bytes(self, token: int) -> bytes:
        """The part of the text that it stands for, which may be less than a character."""
        raw = self._tokenizer.id_to_token(token)
        if raw is None:  # a table with more rows than the tokenizer has tokens
            return b""
        if token in self._added:
            return self._added[token].encode()
        if byte := BYTE.fullmatch(raw):
            return bytes([int(byte[1], 16)])
        if self._alphabet and all(letter in self._alphabet for letter in raw):
            return bytes(self._alphabet[letter] for letter in raw)
        behind = len(self._tokenizer.decode(self._before))
        return str(self._tokenizer.decode([*self._before, token], skip_special_tokens=False))[behind:].encode()

    def text(self, token: int) -> str:
        r"""The same as text; bytes that are no whole characters as ``\xe2\x82``."""
        raw = self.bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in raw)


def completion_logprobs(scored: tuple[Scored, ...], texts: TokenTexts) -> Logprobs:
    """As ``/v1/completions`` has them; the chosen token is among the likeliest ones in any case."""
    chances = [one.chance for one in scored]
    return Logprobs(
        tokens=[texts.text(chance.token) for chance in chances],
        token_logprobs=[chance.logprob for chance in chances],
        top_logprobs=[
            {texts.text(token): value for token, value in ((chance.token, chance.logprob), *reversed(chance.top))} for chance in chances
        ],
        text_offset=[one.offset for one in scored],
    )


def chat_logprobs(scored: tuple[Scored, ...], texts: TokenTexts) -> ChoiceLogprobs:
    """As ``/v1/chat/completions`` has them."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": logprob, "bytes": list(texts.bytes(token))}

    content = [
        ChatCompletionTokenLogprob(
            **told(one.chance.token, one.chance.logprob), top_logprobs=[TopLogprob(**told(*other)) for other in one.chance.top]
        )
        for one in scored
    ]
    return ChoiceLogprobs(content=content, refusal=None)


@cache
def _alphabet() -> dict[str, int]:
    """Letter to byte, of tokenizers that write bytes as letters: printable bytes are themselves, the others follow from 256 on.

    GPT-2's rule (Radford et al. 2019), which ``tokenizers`` calls ByteLevel.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
