"""The Pareto front of perplexity against speed, and its knee."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RULE = (
    "the point of the front that lies farthest below the line between the front's ends, with speed-up and the logarithm of "
    "perplexity both scaled to 0..1 between them"
)


@dataclass(frozen=True)
class FrontPoint:
    """A model in the plot: how many times as fast as dense, and at what perplexity."""

    name: str
    speed: float
    perplexity: float


def pareto(places: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Those that no other one beats: none is as fast or faster at a perplexity as low or lower, and better in one of the two.

    Returns:
        The slowest first; of equals, all.
    """
    kept = [place for place in places if not any(_beats(other, place) for other in places)]
    return tuple(sorted(kept, key=lambda place: (place.speed, place.perplexity, place.name)))


def _beats(one: FrontPoint, other: FrontPoint) -> bool:
    as_good = one.speed >= other.speed and one.perplexity <= other.perplexity
    return as_good and (one.speed, one.perplexity) != (other.speed, other.perplexity)


def knee(front: Sequence[FrontPoint]) -> tuple[FrontPoint | None, str]:
    """The knee of a front that is sorted by speed, and the rule, or why there is none.

    The distance to the chord in normalised axes, as in Satopää et al., "Finding a 'Kneedle' in a Haystack" (2011),
    without its smoothing: a front has few points.
    """
    if len(front) < 3:
        return None, f"a front of {len(front)} has no point between its ends"
    below = [(_below_chord(place, front[0], front[-1]), place) for place in front[1:-1]]
    depth, best = max(below, key=lambda pair: pair[0])
    if depth <= 0:
        return None, "no point of the front lies below the line between its ends: each step costs less than the one before it"
    return best, RULE


def _below_chord(place: FrontPoint, slowest: FrontPoint, fastest: FrontPoint) -> float:
    """Times √2 the distance, positive on the side of more speed and less perplexity."""
    rise = math.log(fastest.perplexity / slowest.perplexity)
    if rise <= 0 or fastest.speed <= slowest.speed:
        return 0.0
    along = (place.speed - slowest.speed) / (fastest.speed - slowest.speed)
    return along - math.log(place.perplexity / slowest.perplexity) / rise
