"""From token ids to text that may be shown: whole characters only, nothing of what comes before, and no special tokens, so that these stop by id.

It stands alone, since Triton loads it out of a package; ``trimline serve`` reads it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CONTEXT = 16  # tokens of the prompt that decide how the first new token is written, such as whether its blank stays
LONGEST = 8  # tokens, of one byte each at least, within which a character is complete or will never be
BROKEN = "\ufffd"  # what bytes that make no character are written as


class Detokeniser:
    """Text of a growing sequence, token by token.

    Args:
        tokenizer: of the model.
        prompt: what comes before; its end only decides how the first tokens are written. Where it ends within a character, the
            whole character is given out if the first tokens complete it, and nothing of it if they do not.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        end = list(prompt[-CONTEXT:])
        whole = next((size for size in range(len(end), 0, -1) if not self._text(end[:size]).endswith(BROKEN)), 0)
        # Bytes of the prompt that the stream would take for new ones: it looks whether the text so far ends in a broken character.
        self._begun = end[whole:]
        self._stream: Any = DecodeStream(ids=end[:whole], skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """What this token makes whole; empty while a character is still incomplete."""
        self._held.append(token)
        return self._complete() if self._begun else self._step()

    def flush(self) -> str:
        """What was held back when the sequence ends in the middle of a character."""
        held, self._held = self._held, []
        return self._text(held)

    def _complete(self) -> str:
        """What follows on a character that the prompt began."""
        begun, held = self._begun, self._held
        together = [*begun, *held]
        if self._text(together).endswith(BROKEN) and len(together) < LONGEST:
            return ""
        self._begun, self._held = [], []
        for start in range(len(begun)):  # what the prompt ends in may be broken by itself, and the character begin behind it
            text = self._text(together[start:])
            if BROKEN not in text:
                self._stream = DecodeStream(ids=together[start:], skip_special_tokens=True)
                return text
        return "".join(self.push(token) for token in held)

    def _step(self) -> str:
        try:
            text = self._stream.step(self._tokenizer, self._held[-1])
        except Exception:  # a plain one: bytes that make no character, after a byte such as a line's end, undo what was shown
            text = self._text(self._held)
            self._stream = DecodeStream(ids=list(self._held), skip_special_tokens=True)
        if text is None:
            return ""
        self._held = []
        return str(text)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""


class NeverFound(ValueError):
    """A stop text that no text holds; ``place`` of it in the list."""

    def __init__(self, place: int, special: str) -> None:
        super().__init__(
            f"the stop text holds the special token {special!r} and more, and special tokens are no part of the text: "
            "it would never be found. Send the token alone."
        )
        self.place = place


def special_stops(stops: Sequence[str], tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the stop texts that are special tokens. They are looked for in the text all the same, since a model can spell them.

    Raises:
        NeverFound: one holds a special token and other text.
    """
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for place, stop in enumerate(stops):
        held = [content for content in special if content and content in stop]
        if held and stop not in special:
            raise NeverFound(place, max(held, key=len))
    return frozenset(special[stop] for stop in stops if stop in special)
