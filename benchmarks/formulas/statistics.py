"""What raw samples say: summaries, a ratio with its confidence interval, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import t

from benchmarks.recipe import LEAST_ROUNDS

LEAST_FOR_P99 = 100
CONTROL_BAND = 0.02
CONFIDENCE = 0.95
LEAST_OPENINGS = 2  # below this there is no interval


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
class Typical:
    """What openings of one thing have in common.

    Attributes:
        value: geometric mean of the openings' medians.
        low, high: its 95 % confidence interval; of one opening, which says nothing of others, the extremes of its rounds.
    """

    value: float
    low: float
    high: float


def by_opening(samples: Sequence[float], each: int) -> list[Sequence[float]]:
    """Rounds in their order, as many to an opening; what is left over is of the last."""
    return [samples[start : start + each] for start in range(0, len(samples), each)]


def typical(openings: Sequence[Sequence[float]]) -> Typical:
    """The value of one opening is the median of its rounds; logarithms of these have an interval by Student's t.

    Until it is opened anew, a model is some per cent faster or slower than it might be, depending on where its memory lies.
    Rounds of one opening share that, so their number makes no interval narrower; that of openings does. Few of them are
    enough: five values have no order statistic that is far enough out, and drawing anew from so few gives too little spread.

    Args:
        openings: positive values by opening, at least one.
    """
    logs = np.log([median(rounds) for rounds in openings])
    value = float(np.exp(logs.mean()))
    if len(logs) == 1:
        return Typical(value, float(min(openings[0])), float(max(openings[0])))
    factor = float(np.exp(_margin(logs)))
    return Typical(value, value / factor, value * factor)


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second of two interleaved models is, from times of the same rounds.

    Attributes:
        value: of an opening the median over its rounds of (the first's time / the second's), which stays where a machine
            slows both halves of a round down; over openings the geometric mean.
        low, high: its 95 % confidence interval, from openings.
        rounds: pairs.
        of_medians: the same from (median of the first's times / median of the second's) in an opening; as large on a
            quiet machine, and moved by one that changes its pace.
        of_medians_low, of_medians_high: its interval.
        openings: that the rounds fall into; 0 where it was not written down, and the interval took rounds as independent.
    """

    value: float
    low: float
    high: float
    rounds: int
    of_medians: float
    of_medians_low: float
    of_medians_high: float
    openings: int = 0

    def reaches(self, bar: float) -> bool:
        """A bar is reached when the interval reaches it."""
        return self.high >= bar

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def paired_ratio(first: Sequence[float], second: Sequence[float], *, each: int = 1) -> Ratio:
    """Speed-up of ``second`` over ``first``, whose entries i were timed in the same round.

    Args:
        first, second: seconds.
        each: rounds between two openings; 1 where entries share nothing.

    Raises:
        ValueError: lengths differ, fewer than two rounds, or a time that is not positive.
    """
    return pooled_ratio(by_opening(first, each), by_opening(second, each))


def pooled_ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Ratio:
    """The same of rounds by opening, which may be of several runs.

    Raises:
        ValueError: as ``paired_ratio``.
    """
    counts = [[len(rounds) for rounds in openings] for openings in (first, second)]
    if counts[0] != counts[1] or sum(counts[0]) < 2:
        raise ValueError(f"{sum(counts[0])} and {sum(counts[1])} times make no pairs; two or more of each are needed")
    if min(min(rounds) for rounds in (*first, *second)) <= 0:
        raise ValueError("a time must be positive")
    pairs = list(zip(first, second, strict=True))
    found = typical([[a / b for a, b in zip(*pair, strict=True)] for pair in pairs])
    of_medians = typical([[median(a) / median(b)] for a, b in pairs])
    return Ratio(found.value, found.low, found.high, sum(counts[0]), of_medians.value, of_medians.low, of_medians.high, len(pairs))


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
    mean, margin = float(differences.mean()), _margin(differences)
    return Difference(mean, mean - margin, mean + margin, len(a))


def within_band(ratio: float) -> bool:
    """Whether a model's ratio to itself is near enough to 1."""
    return 1 - CONTROL_BAND <= ratio <= 1 + CONTROL_BAND


def control_holds(control: Ratio) -> bool:
    """Whether a run's timings count: dense against itself within 1 ± 0.02, over at least 25 rounds of at least two openings."""
    return within_band(control.value) and _is_enough(control)


def verdict(speedup: Ratio, control: Ratio) -> Verdict:
    """What the comparison shows, given its run's control."""
    if not control_holds(control) or not _is_enough(speedup):
        return Verdict.UNRESOLVED
    if speedup.low <= 1 <= speedup.high:
        return Verdict.SAME
    return Verdict.FASTER if speedup.low > 1 else Verdict.SLOWER


def _is_enough(ratio: Ratio) -> bool:
    return ratio.rounds >= LEAST_ROUNDS and ratio.openings >= LEAST_OPENINGS


def _margin(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean, by Student's t."""
    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
