"""Results checked for whether they compare, and everything that a comparison says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.common.errors import TrimlineError
from trimline.comparisons.pairs import AtSpeed, Pair, at_speed, compare_pair
from trimline.comparisons.result import Axis, Result

MOST_PAIRS = 28  # of eight results; more would be read by nobody


@dataclass(frozen=True)
class Comparison:
    """Results side by side on one workload.

    Attributes:
        axis: workload and phase.
        results: the fastest first.
        pairs: every two of them, where they are few; none of two series, which are compared along their lines.
        at_speed: every result against every series that reaches its speed.
        left_out: how many pairs there would be, where they are too many to list.
    """

    axis: Axis
    results: tuple[Result, ...]
    pairs: tuple[Pair, ...]
    at_speed: tuple[AtSpeed, ...]
    left_out: int = 0

    def as_record(self) -> dict[str, Any]:
        """Everything, JSON-compatible."""
        return {
            "workload": self.axis[0],
            "phase": self.axis[1],
            "results": [
                {
                    "name": result.name,
                    "perplexity": asdict(result.perplexity),
                    "speedup": asdict(result.speeds[self.axis].speedup),
                    "latency": result.speeds[self.axis].latency,
                    "resolved": result.speeds[self.axis].resolved,
                    "parameters": result.parameters,
                }
                for result in self.results
            ],
            "pairs": [asdict(pair) for pair in self.pairs],
            "pairs_left_out": self.left_out,
            "at_speed": [asdict(found) for found in self.at_speed],
        }


def comparisons(results: Sequence[Result]) -> tuple[Comparison, ...]:
    """One for every workload that all results were timed on, decoding first.

    Raises:
        TrimlineError: their speeds are of different machines, runtimes, threads or dense models, or of no common workload.
    """
    demand_one_machine(results)
    demand_one_dense(results)
    shared = [axis for axis in results[0].speeds if all(axis in result.speeds for result in results)]
    if not shared:
        named = {result.name: ", ".join(f"{phase} {name}" for name, phase in result.speeds) for result in results}
        said = "; ".join(f"{name}: {axes}" for name, axes in itertools.islice(named.items(), 2))
        raise TrimlineError(f"The results have no workload in common ({said}).", "Add --measure to time them side by side here.")
    return tuple(_on(results, axis) for axis in sorted(shared, key=lambda axis: axis[1] != "decode"))


def _on(results: Sequence[Result], axis: Axis) -> Comparison:
    ordered = tuple(sorted(results, key=lambda result: -result.speeds[axis].speedup.value))
    couples = [pair for pair in itertools.combinations(results, 2) if not (pair[0].series and pair[1].series)]
    left_out = len(couples) if len(couples) > MOST_PAIRS else 0
    pairs = () if left_out else tuple(compare_pair(one, other, axis) for one, other in couples)
    series: dict[str, list[Result]] = {}
    for result in results:
        if result.series:
            series.setdefault(result.series, []).append(result)
    beside = (at_speed(result, points, axis) for result in ordered for name, points in series.items() if name != result.series)
    return Comparison(axis, ordered, pairs, tuple(found for found in beside if found), left_out)


def demand_one_machine(results: Sequence[Result]) -> None:
    """Whether all speeds were measured in the same surroundings."""
    first = results[0]
    for other in results[1:]:
        for key in sorted({*first.machine, *other.machine}):
            one, two = first.machine.get(key, "unknown"), other.machine.get(key, "unknown")
            if one != two:
                raise TrimlineError(
                    f"Their speeds do not compare: {key} is {one} for {first.name} and {two} for {other.name}.",
                    "Add --measure to time them side by side here.",
                )


def demand_one_dense(results: Sequence[Result]) -> None:
    """Whether all speed-ups are over the same dense model."""
    first = results[0]
    for other in results[1:]:
        if first.dense != other.dense:
            raise TrimlineError(
                f"Their speed-ups do not compare: {first.name}'s is over {first.dense}, {other.name}'s over {other.dense}.",
                "Add --measure to time them side by side here.",
            )
