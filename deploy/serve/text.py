"""From token ids to text that may be sent: whole characters only, and nothing that could still become a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CONTEXT = 8  # tokens of the prompt that decide how the first new token is written, such as whether its blank stays


class Detokeniser:
    """Text of a growing sequence, token by token.

    Args:
        tokenizer: of the model.
        prompt: what comes before; its end only decides how the first tokens are written.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream: Any = DecodeStream(ids=list(prompt[-CONTEXT:]), skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """What this token makes whole; empty while a character is still incomplete."""
        held = [*self._held, token]
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # a plain one: bytes that make no character, after a byte such as a line's end, undo what was sent
            text = self._tokenizer.decode(held, skip_special_tokens=True)
            self._stream = DecodeStream(ids=held, skip_special_tokens=True)
        self._held = held if text is None else []
        return str(text or "")

    def flush(self) -> str:
        """What was held back when the sequence ends in the middle of a character."""
        held, self._held = self._held, []
        return str(self._tokenizer.decode(held, skip_special_tokens=True)) if held else ""


class StopFilter:
    """Lets text through up to the first stop string, wherever the pieces are cut.

    The stop string that is complete first ends the text (of two that end at the same place, the longer one); it is not
    part of it. Text that may be the beginning of one is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be sent now."""
        if self.stopped:
            return ""
        self._held += piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            sent, self._held = self._held[: min(ends)[1]], ""
            return sent
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sent, self._held = self._held[:cut], self._held[cut:]
        return sent

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        sent, self._held = self._held, ""
        return sent


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
