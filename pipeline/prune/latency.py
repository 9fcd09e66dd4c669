"""How long a model of given shapes takes, from a table that was measured once: nothing is timed here.

``seconds = fixed part + Σ over blocks of (attention at its KV groups + FFN at its width)``

A sublayer that is absent takes no time. Between measured widths a straight line is taken, below the first what that takes.
Blocks run one after the other, so their times add up; how far that is true is for a check against whole models to say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json

FORMAT = 1
TABLE = "latency.json"
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Times:
    """What one thing that can be timed takes, in seconds.

    Attributes:
        fixed: embedding, output head, and what every call costs.
        attention: of one block, at 0, 1, … KV groups.
        widths: FFN widths that were measured, ascending from 0.
        ffn: of one block, at each of them.
    """

    fixed: float
    attention: tuple[float, ...]
    widths: tuple[int, ...]
    ffn: tuple[float, ...]

    def sublayer(self, kind: Sublayer, units: int) -> float:
        """Seconds of one block's sublayer with so many units.

        Raises:
            ValueError: more units than were measured.
        """
        if units > (self.widths[-1] if kind is Sublayer.FFN else len(self.attention) - 1):
            raise ValueError(f"{units} units of {kind} are more than were measured")
        if kind is not Sublayer.FFN:
            return self.attention[units]
        place = bisect_left(self.widths, units)
        if units in self.widths or place == 1:
            return self.ffn[place]
        low, high = self.widths[place - 1], self.widths[place]
        share = (units - low) / (high - low)
        return self.ffn[place - 1] + share * (self.ffn[place] - self.ffn[place - 1])

    def whole(self, geometry: Geometry) -> float:
        """Seconds of a model."""
        return self.fixed + sum(self.sublayer(kind, block.units(kind)) for block in geometry.blocks for kind in Sublayer)

    def plus(self, other: Times, times: int) -> Times:
        """This, and then the other so many times; both on the same grid."""
        return Times(
            self.fixed + times * other.fixed,
            tuple(a + times * b for a, b in zip(self.attention, other.attention, strict=True)),
            self.widths,
            tuple(a + times * b for a, b in zip(self.ffn, other.ffn, strict=True)),
        )


@dataclass(frozen=True)
class Entry:
    """One measured thing: the ``prefill`` of a workload, or one ``decode`` step of it, of which it has ``steps``."""

    workload: str
    phase: str
    steps: int
    times: Times


@dataclass(frozen=True)
class LatencyTable:
    """Times of a model's possible shapes.

    Attributes:
        model: what the times depend on beside the shapes (``identity``).
        setting: where they were taken: machine, runtime, precision, the shapes that were timed; for people and for keys.
        entries: what was timed, in the order of the recipe's workloads.
    """

    model: Mapping[str, Any]
    setting: Mapping[str, Any]
    entries: tuple[Entry, ...]

    def times(self, workload: str) -> Times:
        """Of ``prefill`` or ``decode`` (the first workload that has it), or of a whole request such as ``128/17``.

        Raises:
            TrimlineError: nothing of that name was measured.
        """
        if workload in PHASES:
            found = [entry.times for entry in self.entries if entry.phase == workload]
            if found:
                return found[0]
        parts = {entry.phase: entry for entry in self.entries if entry.workload == workload}
        if "prefill" in parts:
            decode = parts.get("decode")
            return parts["prefill"].times.plus(decode.times, decode.steps) if decode else parts["prefill"].times
        names = dict.fromkeys([*(entry.phase for entry in self.entries), *(entry.workload for entry in self.entries)])
        raise TrimlineError(f"The latency table knows no workload {workload!r}.", f"It has {', '.join(names)}.")

    def predict(self, geometry: Geometry, workload: str) -> float:
        """Seconds of a model of these shapes.

        Raises:
            TrimlineError: the table is of another model, or knows no such workload.
        """
        self.check(geometry)
        return self.times(workload).whole(geometry)

    def check(self, geometry: Geometry) -> None:
        """Whether the table is of models like this one.

        Raises:
            TrimlineError: it is not.
        """
        wanted = identity(geometry)
        other = [key for key in wanted if self.model.get(key) != wanted[key]]
        if other:
            key = other[0]
            raise TrimlineError(
                f"The latency table is of a model whose {key} is {self.model.get(key)}, and here it is {wanted[key]}.",
                "Measure this model.",
            )

    def write(self, folder: Path) -> None:
        """Writes ``latency.json``."""
        entries = [
            {"workload": entry.workload, "phase": entry.phase, "steps": entry.steps}
            | {name: list(v) if isinstance(v, tuple) else v for name, v in vars(entry.times).items()}
            for entry in self.entries
        ]
        write_json(folder / TABLE, {"format": FORMAT, "model": dict(self.model), "setting": dict(self.setting), "entries": entries})

    @classmethod
    def read(cls, folder: Path) -> LatencyTable:
        """Reads what ``write`` wrote.

        Raises:
            TrimlineError: the folder holds no table, or a damaged one.
        """
        document = read_json(folder / TABLE)
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}")
            return cls(document["model"], document["setting"], tuple(_entry(found) for found in document["entries"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TrimlineError(f"{folder / TABLE} is no latency table ({type(error).__name__}: {error}).", "Measure it again.") from None


def identity(geometry: Geometry) -> dict[str, Any]:
    """What decides how long shapes take, beside the shapes: two models that agree in it share a table."""
    return {
        "family": geometry.family.model_type,
        "hidden": geometry.hidden,
        "head_dim": geometry.head_dim,
        "queries_per_group": geometry.queries_per_group,
        "vocab": geometry.vocab,
        "tied": geometry.tied,
        "positions": geometry.positions,
        "switches": {key: value for key, value in sorted(geometry.switches.items()) if value},
    }


def _entry(found: Mapping[str, Any]) -> Entry:
    times = Times(
        float(found["fixed"]),
        tuple(map(float, found["attention"])),
        tuple(map(int, found["widths"])),
        tuple(map(float, found["ffn"])),
    )
    rising = all(low <= high for row in (times.attention, times.ffn, times.widths) for low, high in zip(row, row[1:], strict=False))
    if not rising or len(times.widths) != len(times.ffn) or times.widths[0] or times.ffn[0] or times.attention[0] or times.fixed < 0:
        raise ValueError("times that no table has")
    return Entry(str(found["workload"]), str(found["phase"]), int(found["steps"]), times)
