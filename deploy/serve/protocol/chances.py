"""How likely a token was, from a model's logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEAST = -9999.0  # in place of minus infinity, which JSON lacks


@dataclass(frozen=True)
class Chance:
    """A token that was chosen.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: ids and logarithms of the likeliest tokens, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Distribution:
    """What the model says of the next token.

    Args:
        logits: one per token, in any shape, before temperature, penalties and every other rule of sampling. They are copied.
    """

    def __init__(self, logits: ArrayLike) -> None:
        scores = np.array(logits, np.float64).reshape(-1)
        scores -= scores.max()
        self._logprobs = scores - np.log(np.exp(scores).sum())

    def chance(self, token: int, most: int) -> Chance:
        """Of a token that was chosen, beside the ``most`` likeliest ones."""
        size = min(most, len(self._logprobs))
        likeliest = np.argpartition(-self._logprobs, size - 1)[:size] if size else np.empty(0, np.int64)
        order = sorted(likeliest.tolist(), key=lambda other: (-self._logprobs[other], other))
        return Chance(token, self._of(token), tuple((other, self._of(other)) for other in order))

    def _of(self, token: int) -> float:
        return max(LEAST, float(self._logprobs[token]))
