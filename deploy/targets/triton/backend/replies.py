"""From a request to a text: what is asked, what was chosen so far, what may be shown of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

if __package__:
    from deploy.pieces import Detokeniser, special_stops
else:  # in Triton the files of a model lie beside each other
    from pieces import Detokeniser, special_stops  # type: ignore[no-redef]

DEFAULT_TOKENS = 64
MOST_STOPS, LONGEST_STOP = 16, 256


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    Attributes:
        ids: the prompt's tokens.
        max_tokens: new tokens at most.
        temperature: 0 takes the most likely token each time.
        seed: of the draws; None: another one each time.
        stop: texts that end the answer and are left out of it.
        stop_tokens: ids of special tokens that do; they are no part of the text.
    """

    ids: tuple[int, ...]
    max_tokens: int = DEFAULT_TOKENS
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    stop_tokens: frozenset[int] = frozenset()


class Reader:
    """Makes wishes of raw requests.

    Args:
        tokenizer: of the model.
        context: positions that the model was made for.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._context = tokenizer, context
        # Longer texts have more tokens than the context, whatever they are: no need to split 10 MB into tokens first.
        self._most_bytes = context * max(len(token.encode()) for token in tokenizer.get_vocab())

    def wish(
        self, text: bytes, max_tokens: int | None = None, temperature: float = 0.0, seed: int | None = None, stop: Sequence[bytes] = ()
    ) -> Wish:
        """Checks a request.

        Raises:
            ValueError: a sentence that says what is wrong with it.
        """
        if not text:
            raise ValueError("text_input is empty.")
        if len(text) > self._most_bytes:
            raise ValueError(f"text_input has {len(text):,} bytes; {self._context:,} tokens have at most {self._most_bytes:,}.")
        ids = tuple(self._tokenizer.encode(_text(text, "text_input")).ids)
        if not ids:
            raise ValueError("text_input has no tokens.")
        room = self._context - len(ids)
        wanted = min(DEFAULT_TOKENS, room) if max_tokens is None else max_tokens
        if room < 1 or wanted > room:
            raise ValueError(f"text_input has {len(ids):,} tokens and max_tokens is {max(wanted, 1):,}; the model has {self._context:,}.")
        if wanted < 1:
            raise ValueError(f"max_tokens is {wanted}; at least 1 is wanted.")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature is {temperature}; 0 or more is wanted.")
        if seed is not None and seed < 0:
            raise ValueError(f"seed is {seed}; 0 or more is wanted.")
        texts = _stops(stop)
        return Wish(ids, wanted, temperature, seed, texts, special_stops(texts, self._tokenizer))


class Reply:
    """The answer to one wish, as it grows.

    Attributes:
        tokens: what was chosen, an end-of-text token included.
        text: the same as text, up to a stop text; a character whose last bytes did not come is left out.
        finish: None while it grows; then ``stop``, ``length`` or ``cancelled``.
    """

    def __init__(self, wish: Wish, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.wish, self._ends = wish, ends
        self._pieces = Detokeniser(tokenizer, wish.ids)
        self._draws = np.random.default_rng(wish.seed)
        self._shown = self._sent = 0
        self.tokens: list[int] = []
        self.text = ""
        self.finish: str | None = None

    def accept(self, logits: NDArray[np.float32]) -> None:
        """Chooses the next token from logits, (vocabulary,)."""
        token = self._choose(logits)
        self.tokens.append(token)
        if token in self._ends or token in self.wish.stop_tokens:
            self.finish = "stop"
            return
        self.text += self._pieces.push(token)
        found = [place for stop in self.wish.stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"
        elif len(self.tokens) >= self.wish.max_tokens:
            self.finish = "length"

    def fresh(self) -> tuple[str, list[int]]:
        """What was not given out yet: tokens, and of the text what cannot become part of a stop text any more."""
        held = 0 if self.finish else max((_overlap(self.text, stop) for stop in self.wish.stop), default=0)
        start, self._shown = self._shown, max(self._shown, len(self.text) - held)
        first, self._sent = self._sent, len(self.tokens)
        return self.text[start : self._shown], self.tokens[first:]

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self.wish.temperature == 0:
            return int(logits.argmax())
        scaled = (logits.astype(np.float64) - logits.max()) / self.wish.temperature
        chances = np.exp(scaled)
        return int(self._draws.choice(len(chances), p=chances / chances.sum()))


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _stops(given: Sequence[bytes]) -> tuple[str, ...]:
    if len(given) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in given):
        raise ValueError(f"stop takes {MOST_STOPS} texts of {LONGEST_STOP} bytes at most.")
    return tuple(_text(stop, "stop") for stop in given if stop)


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text.") from None
