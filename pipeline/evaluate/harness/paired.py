"""Two models on the same documents: the difference of a metric, and its standard error.

The documents are the sample, and both models saw the same ones, so that what makes a document hard cancels: the error of
a difference is far smaller than the errors of its sides suggest. Means are exact; perplexities go by the delta method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[Any]  # one per document: a number, or (log-likelihood, weight)
Floats = NDArray[np.float64]


def standard_error(aggregation: str, values: Values) -> float | None:
    """Of a metric; None where no formula is known for how it is aggregated, or there is one document only."""
    parts = influences(aggregation, values)
    return None if parts is None or len(parts) < 2 else _of_mean(parts)


def difference_error(aggregation: str, first: Values, second: Values) -> float | None:
    """Of the second model's metric minus the first's, documents paired; None as in ``standard_error``."""
    sides = influences(aggregation, first), influences(aggregation, second)
    if sides[0] is None or sides[1] is None or len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        return None
    return _of_mean(sides[1] - sides[0])


def influences(aggregation: str, values: Values) -> Floats | None:
    """How much each document moves the metric, to first order; their mean is zero, or the metric itself for a mean."""
    known: dict[str, Callable[[Values], Floats]] = {
        "mean": lambda v: np.asarray(v, np.float64),
        "perplexity": _of_perplexity,
        "weighted_perplexity": _of_weighted_perplexity,
        "bits_per_byte": lambda v: -_of_ratio(v)[1] / math.log(2),
    }
    return known[aggregation](values) if aggregation in known else None


def _of_perplexity(values: Values) -> Floats:
    """exp(−mean of the log-likelihoods)."""
    logs = np.asarray(values, np.float64)
    return -math.exp(-logs.mean()) * (logs - logs.mean())


def _of_weighted_perplexity(values: Values) -> Floats:
    """exp(−sum of the log-likelihoods / sum of the weights)."""
    ratio, parts = _of_ratio(values)
    return -math.exp(-ratio) * parts


def _of_ratio(values: Values) -> tuple[float, Floats]:
    """Σa / Σb, and per pair (a, b) its influence on that: (a − ratio · b) / mean of b."""
    pairs = np.asarray(values, np.float64)
    ratio = pairs[:, 0].sum() / pairs[:, 1].sum()
    return float(ratio), (pairs[:, 0] - ratio * pairs[:, 1]) / pairs[:, 1].mean()


def _of_mean(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
