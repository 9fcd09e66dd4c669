"""Whether Trimline predicts better than a published row at the same decode speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.markdown import interval
from benchmarks.statistics import Difference, Ratio
from benchmarks.systems_list import OURS
from benchmarks.systems_speed import Speeds
from benchmarks.systems_tables import NOT_RESOLVED, Record, loss_difference

VERDICTS = (
    "published row",
    "its decode speed-up",
    "Trimline row",
    "its decode speed-up",
    "Trimline's speed over the other's",
    "loss difference, nats per token",
    "outcome",
)
SAME_SIZE = ("published row", "Trimline's loss at the same size minus its, nats per token", "Trimline's decode speed over its")
AS_FAST = 0.97  # of the other's decode speed, where the interval of the ratio reaches 1
REACHED, MISSED = "reached", "missed"


def verdicts(records: Sequence[Record], speeds: Speeds, sizes: Iterable[str]) -> list[list[str]]:
    """For every published smaller row of these sizes: whether Trimline predicts better at no lower decode speed.

    Compared is Trimline's largest row that is as fast; which one that is does not depend on what it predicts.
    """
    timed = [record for record in records if not record.get("failure") and record["name"] in speeds.rows]
    ours = [record for record in timed if record["system"] == OURS]
    published = [record for record in timed if record["system"] != OURS and record["size"] in set(sizes)]
    return [_verdict(record, ours, speeds) for record in published]


def at_the_same_size(records: Sequence[Record], speeds: Speeds, sizes: Iterable[str]) -> list[list[str]]:
    """For every published smaller row of these sizes: Trimline's loss at the same number of weights minus its, and the ratio of speeds."""
    made = [record for record in records if not record.get("failure") and record["size"] in set(sizes)]
    ours = {record["size"]: record for record in made if record["system"] == OURS}
    pairs = [(record, ours[record["size"]]) for record in made if record["system"] != OURS and record["size"] in ours]
    return [
        [
            f"{other['title']}, {other['size']}",
            _margin(loss_difference(other, mine)),
            _quotient(speeds.decode_ratio(other["name"], mine["name"])),
        ]
        for other, mine in pairs
    ]


def _quotient(ratio: Ratio | None) -> str:
    return "not in one run" if ratio is None else interval(ratio.as_record())


def _margin(found: Difference) -> str:
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _verdict(published: Record, ours: Sequence[Record], speeds: Speeds) -> list[str]:
    name = f"{published['title']}, {published['size']}"
    theirs = speeds.rows[published["name"]]["decode"]
    side_by_side = [(record, speeds.decode_ratio(published["name"], record["name"])) for record in ours]
    fast_enough = [(record, ratio) for record, ratio in side_by_side if _is_as_fast(record, published, ratio, speeds)]
    if not fast_enough:
        return [name, interval(theirs["speed_up"]), "none is as fast", *["–"] * 3, NOT_RESOLVED]
    chosen, ratio = max(fast_enough, key=lambda pair: pair[0]["parameters"])
    mine, found = speeds.rows[chosen["name"]]["decode"], loss_difference(published, chosen)
    resolved = mine["control_holds"] and theirs["control_holds"]
    speeds_of_both = [interval(theirs["speed_up"]), chosen["size"], interval(mine["speed_up"]), _quotient(ratio)]
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
    return float(speeds.rows[record["name"]]["decode"]["speed_up"]["value"])
