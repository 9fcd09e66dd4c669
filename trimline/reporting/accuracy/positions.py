"""Losses early and late in the windows: whether a model was broken beyond some position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.formulas.statistics import paired_difference
from trimline.reporting import formats
from trimline.reporting.content import Cell, Column, Item, Note, Plot, Table
from trimline.reporting.data import ByText, Measure, Positions

FAR, TIMES = 0.1, 1.5  # nats more, and times as many, than at the start of the windows
LATER = (
    "what the pruned model lost in the last eighth of its windows, less what it lost in the first, nats per token; brackets: 95 % interval, "
    "windows in pairs"
)


def positions_of(dense: Mapping[str, Any], pruned: Mapping[str, Any], window: int) -> Positions | None:
    """From what the evaluation keeps of one text; None where either was not read by position."""
    before, after = (record.get("position_losses") for record in (dense, pruned))
    if not before or not after:
        return None
    later = None
    if len(before) > 1:
        lost = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
        found = paired_difference([parts[0] for parts in lost], [parts[-1] for parts in lost])
        later = Measure(found.mean, low=found.low, high=found.high)
    return Positions(window, _means(before), _means(after), later)


def _means(windows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(part) / len(windows) for part in zip(*windows, strict=True))


def part_ends(window: int, parts: int) -> list[int]:
    """Last token of each part of a window, counted from 1; its first token is not predicted."""
    whole, more = divmod(window - 1, parts)
    return [1 + whole * number + min(number, more) for number in range(1, parts + 1)]


def position_items(rows: Sequence[ByText]) -> Iterator[Item]:
    """The plot, its table, and a sentence where the late part lost far more; nothing where no text was read by position."""
    read = [(row.name, row.positions) for row in rows if row.positions]
    if not read:
        return
    parts = (Column("Early", True), Column("Middle", True), Column("Late", True), Column("Late − early", True, LATER))
    yield Plot("positions", "Loss by position in the window")
    table = tuple(_row(name, found) for name, found in read)
    said = "first eighth, the two in the middle, last eighth; dense → pruned, nats per token"
    yield Table((Column("Text"), *parts), table, f"Loss by position in the window ({said})")
    if (late := worse_late(rows)) is not None:
        yield Note(f"{late[:1].upper()}{late[1:]}.")


def worse_late(rows: Sequence[ByText]) -> str | None:
    """What a headline adds where a text's late part lost far more than its early one; the worst text's, None where none did.

    The whole interval of the difference must lie above 0.1 nats, and the late part must have lost half as much again as the early one.
    """
    found = [(row.name, row.positions) for row in rows if row.positions and _far(row.positions)]
    if not found:
        return None
    name, worst = max(found, key=lambda one: _lost(one[1])[1])
    start, end = _lost(worst)
    first = part_ends(worst.window, len(worst.dense))[-2] + 1
    return f"from token {first:,} on it loses {end:.2f} nats a token to dense, where it loses {start:.2f} at the start of a window ({name})"


def _lost(found: Positions) -> tuple[float, float]:
    """What the pruned model loses to dense in the first eighth and in the last, nats per token."""
    return found.pruned[0] - found.dense[0], found.pruned[-1] - found.dense[-1]


def _far(found: Positions) -> bool:
    start, end = _lost(found)
    return found.later is not None and found.later.low is not None and found.later.low > FAR and end > TIMES * start


def _row(name: str, found: Positions) -> tuple[Cell, ...]:
    half = len(found.dense) // 2

    def pair(places: slice) -> Cell:
        before, after = (sum(values[places]) / len(values[places]) for values in (found.dense, found.pruned))
        return Cell(f"{before:.3f} → {after:.3f}")

    parts = map(pair, (slice(0, 1), slice(half - 1, half + 1), slice(-1, None)))
    later = found.later
    if later is None:
        return Cell(name), *parts, Cell(formats.NONE)
    return Cell(name), *parts, Cell(f"{later.value:+.3f}".replace("-", formats.MINUS), detail=formats.interval(later, 3))
