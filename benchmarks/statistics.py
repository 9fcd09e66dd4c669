"""What raw samples say: summaries, a ratio with its confidence interval, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.stats import bootstrap, quantile_test, t

from benchmarks.recipe import LEAST_ROUNDS

LEAST_FOR_P99 = 100
CONTROL_BAND = 0.02
CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Summary:
    """Statistics of raw samples, in their unit.

    ``p99`` is None below 100 samples, where it would be little but the maximum; ``deviation`` is the sample standard
    deviation (n − 1), None for one sample.
    """

    n: int
    mean: float
    minimum: float
    maximum: float
    deviation: float | None
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float | None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def summarise(samples: Sequence[float]) -> Summary:
    """Statistics of at least one sample; percentiles interpolate linearly between order statistics.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("there is nothing to summarise")
    values = np.asarray(samples, dtype=float)
    p50, p75, p90, p95, p99 = (float(p) for p in np.percentile(values, [50, 75, 90, 95, 99]))
    return Summary(
        n=len(values),
        mean=float(values.mean()),
        minimum=float(values.min()),
        maximum=float(values.max()),
        deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
        p50=p50,
        p75=p75,
        p90=p90,
        p95=p95,
        p99=p99 if len(values) >= LEAST_FOR_P99 else None,
    )


class Verdict(StrEnum):
    """What a comparison shows."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no measurable change"
    UNRESOLVED = "not resolved"


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second of two interleaved models is, from times of the same rounds.

    Attributes:
        value: median over rounds of (the first's time / the second's): a machine that slows down for a while slows
            both halves of a round, and the ratio stays.
        low, high: its 95 % confidence interval, exact, from order statistics.
        rounds: pairs.
        of_medians: median of the first's times / median of the second's; the same on a quiet machine, and moved by
            one that changes its pace.
        of_medians_low, of_medians_high: its interval, from a bootstrap over rounds that keeps pairs together.
    """

    value: float
    low: float
    high: float
    rounds: int
    of_medians: float
    of_medians_low: float
    of_medians_high: float

    def reaches(self, bar: float) -> bool:
        """A bar is reached when the interval reaches it."""
        return self.high >= bar

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def paired_ratio(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Ratio:
    """Speed-up of ``second`` over ``first``, whose entries i were timed in the same round.

    Raises:
        ValueError: lengths differ, fewer than two rounds, or a time that is not positive.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} times make no pairs; two or more of each are needed")
    if min(a.min(), b.min()) <= 0:
        raise ValueError("a time must be positive")
    quotients = a / b
    value = typical_ratio(first, second)
    exact = quantile_test(quotients, q=value, p=0.5).confidence_interval(CONFIDENCE)
    resampled = bootstrap(
        (a, b),
        _ratio_of_medians,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(
        value=value,
        low=_finite(exact.low, quotients.min()),
        high=_finite(exact.high, quotients.max()),
        rounds=len(a),
        of_medians=float(_ratio_of_medians(a, b, axis=-1)),
        of_medians_low=float(resampled.low),
        of_medians_high=float(resampled.high),
    )


@dataclass(frozen=True)
class Difference:
    """How much more the second of two models has than the first, from pairs.

    Attributes:
        mean: of the differences.
        low, high: its 95 % confidence interval, by Student's t over pairs.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of second − first, whose entries i are of the same thing, such as a window of text.

    Raises:
        ValueError: lengths differ, or fewer than two pairs.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} values make no pairs; two or more of each are needed")
    differences = b - a
    margin = t.ppf((1 + CONFIDENCE) / 2, len(a) - 1) * differences.std(ddof=1) / np.sqrt(len(a))
    mean = float(differences.mean())
    return Difference(mean, mean - float(margin), mean + float(margin), len(a))


def typical_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median over rounds of how many times faster the second is."""
    return float(np.median(np.asarray(first) / np.asarray(second)))


def within_band(ratio: float) -> bool:
    """Whether a model's ratio to itself is near enough to 1."""
    return 1 - CONTROL_BAND <= ratio <= 1 + CONTROL_BAND


def control_holds(control: Ratio) -> bool:
    """Whether a run's timings count: dense against itself within 1 ± 0.02, over at least 25 rounds."""
    return within_band(control.value) and control.rounds >= LEAST_ROUNDS


def verdict(speed_up: Ratio, control: Ratio) -> Verdict:
    """What the comparison shows, given its run's control."""
    if not control_holds(control) or speed_up.rounds < LEAST_ROUNDS:
        return Verdict.UNRESOLVED
    if speed_up.low <= 1 <= speed_up.high:
        return Verdict.SAME
    return Verdict.FASTER if speed_up.low > 1 else Verdict.SLOWER


def _ratio_of_medians(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return np.median(a, axis=axis) / np.median(b, axis=axis)


def _finite(value: float, otherwise: float) -> float:
    """Few rounds have no order statistic far enough out: the extreme is then the best that can be said."""
    return float(value if np.isfinite(value) else otherwise)
