"""Questions with right answers: what guessing gives, and whose answers changed.

A model that guesses loses nothing by being pruned, so only what the dense model can do says anything of the pruned one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

ERRORS = 3.0  # standard errors above chance from which a model is said to know


def beats_chance(right: int, total: int, chance: float) -> bool:
    """Whether so many right answers are more than three standard errors above what guessing gives.

    The standard error is that of guessing, sqrt(c (1 − c) / n): it is what has to be ruled out, and it is not zero where all answers are right.
    """
    return total > 0 and right / total > chance + ERRORS * math.sqrt(chance * (1 - chance) / total)


@dataclass(frozen=True)
class Flips:
    """Answers that changed between two models asked the same.

    Attributes:
        lost: right before, wrong after.
        gained: wrong before, right after.
        p: of McNemar's exact test, two-sided: the chance of a split at least this uneven where losing and gaining are as likely.
    """

    lost: int
    gained: int
    p: float


def flips(before: Sequence[float], after: Sequence[float]) -> Flips:
    """Of answers that are right (1) or wrong (0), paired by their place.

    Raises:
        ValueError: their numbers differ.
    """
    pairs = list(zip(before, after, strict=True))
    lost, gained = (sum(1 for pair in pairs if pair == way) for way in ((1, 0), (0, 1)))
    return Flips(lost, gained, float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0)
