"""The next token from the model's logits, by the search options of one request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Scores = NDArray[np.float64]
FEW = 1024  # the most likely tokens, which usually hold the share that is asked for; sorting a whole vocabulary takes milliseconds


class Chooser:
    """Chooses the tokens of one sequence; the same seed and logits give the same tokens.

    Args:
        options: ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``random_seed`` and ``min_length``, as ``sampling`` states them.
        prompt: token ids before the first chosen one.
        ends: tokens that end a text; none of them is chosen below ``min_length``.
        penalty: divides the scores of tokens that are there already, where these are positive, and multiplies negative ones
            (https://arxiv.org/abs/1909.05858, section 4.1); 1: none.
    """

    def __init__(self, options: Mapping[str, Any], prompt: Iterable[int], ends: Iterable[int], penalty: float = 1.0) -> None:
        self._options, self._penalty = options, penalty
        self._ends = np.asarray(sorted(ends), np.int64)
        self._seen = set(prompt)
        self._draws = np.random.default_rng(options.get("random_seed"))

    def choose(self, logits: Logits, length: int) -> int:
        """The next token.

        Args:
            logits: of the model, (vocabulary,); left as they are.
            length: tokens that are there, the prompt's included.

        Raises:
            ValueError: no logit is the largest, since one is no number.
        """
        scores = logits.astype(np.float64)
        if self._penalty != 1:
            seen = np.fromiter(self._seen, np.int64)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * self._penalty, scores[seen] / self._penalty)
        if length < self._options.get("min_length", 0):
            scores[self._ends[self._ends < len(scores)]] = -np.inf
        if not np.isfinite(scores.max()):
            raise ValueError("the model's logits are not finite numbers")
        token = self._drawn(scores) if self._options.get("do_sample") else int(scores.argmax())
        self._seen.add(token)
        return token

    def _drawn(self, scores: Scores) -> int:
        tokens, shares = chances(scores, self._options["temperature"], self._options["top_k"], self._options["top_p"])
        place = np.searchsorted(np.cumsum(shares), self._draws.random(), side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def chances(scores: Scores, temperature: float, top_k: int, top_p: float) -> tuple[NDArray[np.int64], Scores]:
    """Tokens that may be drawn and how likely each is: softmax, of it the most likely ``top_k``, of these the fewest that reach ``top_p``.

    Args:
        scores: (vocabulary,); the largest is finite.
        temperature: above 0.
        top_k: 0: no limit.
        top_p: above 0; 1: no limit. The most likely token always stays.
    """
    tokens = _largest(scores, top_k) if 0 < top_k < len(scores) else np.arange(len(scores))
    weights = np.exp((scores[tokens] - scores.max()) / temperature)
    if top_p < 1:
        wanted = top_p * weights.sum()
        first = _largest(weights, FEW) if len(weights) > FEW else np.arange(len(weights))
        if weights[first].sum() < wanted:
            first = np.arange(len(weights))
        order = first[np.argsort(-weights[first], kind="stable")]
        kept = order[: int(np.searchsorted(np.cumsum(weights[order]), wanted)) + 1]
        tokens, weights = tokens[kept], weights[kept]
    return tokens, weights / weights.sum()


def _largest(values: Scores, number: int) -> NDArray[np.int64]:
    return np.sort(np.argpartition(-values, number - 1)[:number])
