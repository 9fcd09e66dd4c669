"""What came out of a sweep, in a sentence."""

from __future__ import annotations

from trimline.reporting import formats
from trimline.reporting.headline import UNRESOLVED
from trimline.sweeps.data import Front, SweepData
from trimline.sweeps.tables import axis_name, label, unresolved_points


def headline(data: SweepData) -> str:
    """How many points there are, and which one is the knee on the first workload."""
    whole = len(data.points) - len([point for point in data.points if point.failure])
    count = f"{len(data.points)} points" if whole == len(data.points) else f"{whole} of {len(data.points)} points have a model"
    if not data.fronts:
        return f"{count}; none was timed, so nothing is said about speed."
    return f"{count}. {knee_sentence(data, data.fronts[0])}"


def doubts(data: SweepData) -> str:
    """How many speeds of the first workload prove nothing; empty where all of them count."""
    if not data.fronts:
        return ""
    found = unresolved_points(data, data.fronts[0])
    timed = [row for row in data.points if row.speed(data.fronts[0].axis)]
    if not found:
        return ""
    return (
        f"{axis_name(data.fronts[0])}: {len(found)} of {len(timed)} speeds are {UNRESOLVED}: in their run dense did not agree with itself to "
        "within 2 %, or there were fewer than 25 rounds. Neither front nor knee is more certain than that."
    )


def knee_sentence(data: SweepData, front: Front) -> str:
    """The knee with what it costs and gains, or why there is none."""
    if front.knee is None:
        return f"{axis_name(front)}: no knee, since {front.why}."
    row = data.point(front.knee)
    speed = row.speed(front.axis)
    assert speed is not None
    gain = f"{formats.ratio(speed.speedup.value)} as fast {formats.interval(speed.speedup)}" if speed.speedup else "as fast as dense"
    doubt = f", {UNRESOLVED}" if speed.verdict.startswith(UNRESOLVED) else ""
    before = formats.perplexity(data.dense.perplexity)
    return f"{axis_name(front)}: the knee is {label(data, row)}, {gain}{doubt}, perplexity {before} → {formats.perplexity(row.perplexity)}."
