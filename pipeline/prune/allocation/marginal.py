"""Error curves into sizes: what every space loses with each tile that goes, and the tiles that cost least for what they save."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Curve:
    """What one index set (a block's FFN channels, a block's KV groups) loses as it shrinks.

    Attributes:
        kept: numbers of units that it may keep, descending; the first is what it has now.
        errors: the error at each, ascending.
        cost: what one unit costs, in the budget's measure.
    """

    kept: Sequence[int]
    errors: Sequence[float]
    cost: float

    @property
    def largest_tile(self) -> float:
        """The most that a single step from one size to the next saves; 0 where there is one size."""
        return max((before - after for before, after in pairwise(self.kept)), default=0) * self.cost


@dataclass(frozen=True)
class _Edge:
    """A stretch of a curve's lower convex hull: between places ``start`` and ``stop``, at so much error per cost."""

    slope: float
    start: int
    stop: int


def most_removed(curves: Mapping[Key, Curve]) -> float:
    """The cost that goes where each keeps its least."""
    return sum((curve.kept[0] - curve.kept[-1]) * curve.cost for curve in curves.values())


def sizes_within(curves: Mapping[Key, Curve], remove: float) -> dict[Key, int]:
    """How many units each keeps so that about ``remove`` of cost goes at the least total error.

    For convex curves taking the flattest stretch first is optimal; other curves stand in for by their lower convex hulls,
    since between two corners of a hull both corners together do better than what lies above it. The last stretch is
    taken as far as the budget goes.

    Args:
        curves: one per index set.
        remove: cost that is to go, in the curves' measure.
    """
    edges = [(edge, key) for key, curve in curves.items() for edge in lower_hull(curve)]
    edges.sort(key=lambda pair: pair[0].slope)
    places = dict.fromkeys(curves, 0)
    left = remove
    for edge, key in edges:
        curve = curves[key]
        for place in range(edge.start + 1, edge.stop + 1):
            saved = (curve.kept[places[key]] - curve.kept[place]) * curve.cost
            if saved / 2 > left or places[key] < edge.start:
                break
            places[key], left = place, left - saved
    return {key: curve.kept[places[key]] for key, curve in curves.items()}


def lower_hull(curve: Curve) -> list[_Edge]:
    """The stretches of a curve's lower convex hull, flattest first."""
    corners = [0]
    for place in range(1, len(curve.kept)):
        while len(corners) > 1 and _slope(curve, corners[-2], corners[-1]) >= _slope(curve, corners[-1], place):
            corners.pop()
        corners.append(place)
    return [_Edge(_slope(curve, start, stop), start, stop) for start, stop in pairwise(corners)]


def _slope(curve: Curve, start: int, stop: int) -> float:
    return (curve.errors[stop] - curve.errors[start]) / ((curve.kept[start] - curve.kept[stop]) * curve.cost)
