"""Two results: who is faster, whose perplexity is lower, and what of that holds at the same speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.formulas.statistics import by_opening, paired_difference, pooled_ratio
from trimline.comparisons.result import Axis, Result, TimedWorkload
from trimline.reporting.data import Measure

EQUAL = 0.03  # two speeds are the same where their ratio lies within 1 ± this, interval included


@dataclass(frozen=True)
class Pair:
    """The second of two results, seen from the first.

    Attributes:
        first, second: their names.
        faster: how many times as fast the second is.
        paired: whether that comes from the same rounds, rather than from two speed-ups over dense.
        resolved: whether the controls held.
        perplexity: the second's over the first's; None where no windows pair.
        verdict: what follows, in words.
    """

    first: str
    second: str
    faster: Measure
    paired: bool
    resolved: bool
    perplexity: Measure | None
    verdict: str


def compare_pair(first: Result, second: Result, axis: Axis) -> Pair:
    """Both on one workload."""
    one, other = first.speeds[axis], second.speeds[axis]
    shared = [run for run in one.runs if one.runs[run] and len(one.runs[run]) == len(other.runs.get(run, ()))]
    faster = _from_rounds(one, other, shared) if shared else _from_dense(one, other)
    resolved = one.resolved and other.resolved
    perplexity = perplexity_ratio(first, second)
    verdict = _verdict(first.name, second.name, faster, resolved, perplexity)
    return Pair(first.name, second.name, faster, bool(shared), resolved, perplexity, verdict)


def perplexity_ratio(first: Result, second: Result) -> Measure | None:
    """The second's perplexity over the first's, from the differences window by window."""
    if first.text != second.text:
        return None
    return ratio_of_losses(first.losses, second.losses)


def ratio_of_losses(first: Sequence[float], second: Sequence[float]) -> Measure | None:
    """exp of the mean difference in loss, with its interval by Student's t over windows."""
    if len(first) != len(second) or len(first) < 2:
        return None
    found = paired_difference(first, second)
    return Measure(*(math.exp(value) for value in (found.mean, found.low, found.high)))


def _from_rounds(one: TimedWorkload, other: TimedWorkload, shared: Sequence[str]) -> Measure:
    ratio = pooled_ratio(*([opening for run in shared for opening in by_opening(timed.runs[run], one.each)] for timed in (one, other)))
    return Measure(ratio.value, low=ratio.low, high=ratio.high)


def _from_dense(one: TimedWorkload, other: TimedWorkload) -> Measure:
    """The ratio of two speed-ups over the same dense model, whose relative errors are independent and add in squares."""
    value = math.log(other.speedup.value / one.speedup.value)
    below = math.hypot(*(_distance(timed.speedup, end) for timed, end in ((other, "low"), (one, "high"))))
    above = math.hypot(*(_distance(timed.speedup, end) for timed, end in ((other, "high"), (one, "low"))))
    return Measure(math.exp(value), low=math.exp(value - below), high=math.exp(value + above))


def _distance(measure: Measure, end: str) -> float:
    bound = measure.low if end == "low" else measure.high
    return abs(math.log((bound or measure.value) / measure.value))


def _verdict(first: str, second: str, faster: Measure, resolved: bool, perplexity: Measure | None) -> str:
    speed, text = _side(faster, EQUAL), _side(perplexity, 0.0) if perplexity else None
    if not resolved:
        return "not resolved: a run's control did not hold"
    if text is None:
        return "their perplexities are not of the same windows"
    if speed == "same":
        better = {"above": first, "below": second}.get(text)
        return f"at equal latency {better} predicts better" if better else "equal latency, no measurable difference in perplexity"
    if speed == "unclear":
        return "speeds not told apart to within 3 %"
    quick, slow = (second, first) if speed == "above" else (first, second)
    worse = {"above": second, "below": first}.get(text)
    if worse is None:
        return f"{quick} is faster at no measurable difference in perplexity"
    return f"{quick} is better in both" if worse == slow else f"{quick} is faster, {slow} predicts better: not at equal latency"


def _side(measure: Measure, band: float) -> str:
    """Where a ratio's interval lies: ``above`` or ``below`` 1, the ``same`` to within the band, or ``unclear``."""
    low, high = measure.low or measure.value, measure.high or measure.value
    if band and 1 - band <= low and high <= 1 + band:
        return "same"
    if low > 1 or high < 1:
        return "above" if low > 1 else "below"
    return "unclear"


@dataclass(frozen=True)
class AtSpeed:
    """One result against a series at that result's speed.

    Attributes:
        result, series: their names.
        speedup: the result's, over dense.
        between: the two points of the series on either side.
        perplexity: of the series there, interpolated.
        ratio: the result's perplexity over it.
        resolved: whether the controls of all three held.
    """

    result: str
    series: str
    speedup: Measure
    between: tuple[str, str]
    perplexity: float
    ratio: Measure | None
    resolved: bool


def at_speed(result: Result, series: Sequence[Result], axis: Axis) -> AtSpeed | None:
    """A series at the speed of a result: losses go linearly with speed between its two neighbours, window by window.

    Returns:
        None where the series does not reach that speed, or its losses are of other windows.
    """
    speed = result.speeds[axis].speedup.value
    points = sorted(series, key=lambda point: point.speeds[axis].speedup.value)
    for slow, fast in zip(points, points[1:], strict=False):
        low, high = (point.speeds[axis].speedup.value for point in (slow, fast))
        if low <= speed <= high and slow.text == fast.text == result.text and len(slow.losses) == len(fast.losses) > 0:
            share = (speed - low) / (high - low) if high > low else 0.0
            losses = (1 - share) * np.asarray(slow.losses) + share * np.asarray(fast.losses)
            return AtSpeed(
                result=result.name,
                series=result_series(slow),
                speedup=result.speeds[axis].speedup,
                between=(slow.name, fast.name),
                perplexity=math.exp(float(losses.mean())),
                ratio=ratio_of_losses(losses.tolist(), result.losses),
                resolved=all(one.speeds[axis].resolved for one in (result, slow, fast)),
            )
    return None


def result_series(result: Result) -> str:
    """A series by its name, or the result's own."""
    return result.series or result.name
