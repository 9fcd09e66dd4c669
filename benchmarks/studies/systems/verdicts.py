"""Whether Trimline predicts better than a published row at the same decode speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.formulas.statistics import Difference, Ratio
from benchmarks.results.cells import interval
from benchmarks.studies.systems.speed import Speeds
from benchmarks.studies.systems.systems import ALL_OURS
from benchmarks.studies.systems.tables import NOT_RESOLVED, Record, loss_difference, named

VERDICTS = (
    "published row",
    "its decode speed-up",
    "row of ours",
    "its decode speed-up",
    "its speed over the published row's",
    "loss difference, nats per token",
    "outcome",
)
SAME_SIZE = (
    "published row",
    "row of ours at the same size",
    "its loss minus the published row's, nats per token",
    "its decode speed over the published row's",
)
AS_FAST = 0.97  # of the other's decode speed, where the interval of the ratio reaches 1
REACHED, MISSED = "reached", "missed"


def verdicts(records: Sequence[Record], speeds: Speeds, sizes: Iterable[str]) -> list[list[str]]:
    """For every published smaller row of these sizes: whether Trimline predicts better at no lower decode speed.

    Compared is the largest row of ours that is as fast; which one that is does not depend on what it predicts.
    """
    timed = [record for record in records if not record.get("failure") and record["name"] in speeds.rows]
    ours, published = _told_apart(timed)
    return [_verdict(record, ours, speeds) for record in published if record["size"] in set(sizes)]


def at_the_same_size(records: Sequence[Record], speeds: Speeds, sizes: Iterable[str]) -> list[list[str]]:
    """For every published smaller row of these sizes: how every row of ours with as many weights compares."""
    smaller = (record for record in records if not record.get("failure") and "zeros" not in record)
    ours, published = _told_apart(record for record in smaller if record["size"] in set(sizes))
    pairs = [(other, mine) for other in published for mine in ours if mine["size"] == other["size"]]
    return [
        [
            named(other),
            mine["title"],
            _margin(loss_difference(other, mine)),
            _quotient(speeds.decode_ratio(other["name"], mine["name"])),
        ]
        for other, mine in pairs
    ]


def _told_apart(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Those of ours, and the published ones."""
    ours: list[Record] = []
    published: list[Record] = []
    for record in records:
        (ours if record["system"] in ALL_OURS else published).append(record)
    return ours, published


def _quotient(ratio: Ratio | None) -> str:
    return "not in one run" if ratio is None else interval(ratio)


def _margin(found: Difference) -> str:
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _verdict(published: Record, ours: Sequence[Record], speeds: Speeds) -> list[str]:
    name = named(published)
    theirs = speeds.rows[published["name"]]["decode"]
    side_by_side = [(record, speeds.decode_ratio(published["name"], record["name"])) for record in ours]
    fast_enough = [(record, ratio) for record, ratio in side_by_side if _is_as_fast(record, published, ratio, speeds)]
    if not fast_enough:
        return [name, interval(theirs.speedup), "none is as fast", *["–"] * 3, NOT_RESOLVED]
    chosen, ratio = max(fast_enough, key=lambda pair: pair[0]["parameters"])
    mine, found = speeds.rows[chosen["name"]]["decode"], loss_difference(published, chosen)
    resolved = mine.control_holds and theirs.control_holds
    speeds_of_both = [interval(theirs.speedup), named(chosen), interval(mine.speedup), _quotient(ratio)]
    return [name, *speeds_of_both, _margin(found), outcome(found, resolved)]


def _is_as_fast(ours: Record, published: Record, ratio: Ratio | None, speeds: Speeds) -> bool:
    """In runs that both were timed in: the interval of the ratio reaches 1, and its value ``AS_FAST``.

    Of rows that were not timed together, the speed-ups over dense are compared.
    """
    if ratio is None:
        return _decode(ours, speeds) >= _decode(published, speeds)
    return ratio.reaches(1.0) and ratio.value >= AS_FAST


def outcome(found: Difference, resolved: bool) -> str:
    """Reached where the whole interval lies below zero, missed where it lies above; nothing without valid timings."""
    if not resolved or found.low <= 0 <= found.high:
        return NOT_RESOLVED
    return REACHED if found.high < 0 else MISSED


def _decode(record: Record, speeds: Speeds) -> float:
    return speeds.rows[record["name"]]["decode"].speedup.value
