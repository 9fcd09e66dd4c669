"""How fast the rows are: interleaved runs of a few shapes each, dense and dense again in every one.

A process per model holds its weights, so all shapes at once would not fit in memory. Every speed-up is against dense in
the same rounds, so rows of different runs compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import fingerprint
from benchmarks.realised_gain import BARS
from benchmarks.recipe import BenchmarkSlice
from benchmarks.stage import measure
from benchmarks.statistics import Ratio, paired_ratio
from benchmarks.systems_list import OURS
from benchmarks.systems_measure import Record, Setting, without_paths
from benchmarks.systems_row import made
from benchmarks.systems_shapes import EXPORT, Shape, export_shape, shape_of
from benchmarks.target import series
from pipeline.artefact import digest
from pipeline.checkpoint import Checkpoint, read_json, write_json
from pipeline.errors import TrimlineError
from pipeline.events import Events

QUIET = Events()
DECODE = next(workload for workload, metric in BARS if metric == "decode")
TOGETHER = 8  # the shapes of one size, and further ones of ours beside it
ROUNDS = 50  # shapes of as many weights differ by 3 % in half of that
TIMINGS = "timed"  # folder beside the rows' records


@dataclass
class Speeds:
    """What was timed.

    Attributes:
        rows: row name, then ``prefill`` or ``decode``, to the comparison with dense (``benchmarks.results.comparison``).
        runs: everything that was measured, run by run.
        failures: row name to the sentence that says why it has no speed.
        models: row name to the name that its shape has in the runs.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def why(self, name: str) -> dict[str, str]:
        """What a row's record says of a failure to time it."""
        return {"untimed": self.failures[name]} if name in self.failures else {}

    def decode_ratio(self, first: str, second: str) -> Ratio | None:
        """How many times faster one row decodes than another, from the rounds that both were timed in; None where there are none.

        Of several runs the one with the most rounds counts, and none whose control does not hold.
        """
        names = [self.models.get(row, row) for row in (first, second)]
        both = [run for run in self.runs if set(names) <= set(run["samples"][DECODE]) and _is_valid(run)]
        pairs = [[series(run, BenchmarkSlice.model_validate(run["recipe"]), "decode", name) for name in names] for run in both]
        return paired_ratio(*max(pairs, key=lambda pair: len(pair[0]))) if pairs else None


def _is_valid(run: Mapping[str, Any]) -> bool:
    return all(row["control_holds"] for row in run["comparisons"] if (row["workload"], row["metric"]) == (DECODE, "decode"))


@dataclass(frozen=True)
class Timing:
    """How shapes are timed.

    Attributes:
        recipe: what is timed.
        together: shapes per run, without the two dense models.
        new: also what has no timings yet; without, only what is kept counts.
        again: also what has timings that were not resolved.
    """

    recipe: BenchmarkSlice
    together: int = TOGETHER
    new: bool = True
    again: bool = False


def timings(records: Sequence[Record], setting: Setting, timing: Timing) -> Speeds:
    """Speeds of every row with units removed: those of its shape, each shape timed once."""
    timed = [record for record in records if is_timed(record)]
    shapes = [{_name(record["shape"]): record["shape"] for record in rows} for rows in by_size(timed)]
    return of_rows(time_shapes(shapes, setting, timing), timed)


def by_size(records: Sequence[Record]) -> list[list[Record]]:
    """Rows that are to be compared with each other: all systems at a size, and sizes of our own up to the next."""
    groups: list[list[Record]] = []
    for record in records:
        if not groups or (record["system"] != OURS and groups[-1][-1]["system"] == OURS):
            groups.append([])
        groups[-1].append(record)
    return groups


def _name(shape: Shape) -> str:
    return digest(shape)[:12]


def is_timed(record: Record) -> bool:
    """Whether a row has a shape of its own: neither dense, nor 2:4, nor failed."""
    return "shape" in record and record["system"] != "dense" and "zeros" not in record


def of_rows(found: Speeds, records: Sequence[Record]) -> Speeds:
    """Speeds by row name, from those by shape."""
    keys = {record["name"]: _name(record["shape"]) for record in records}
    rows = {name: found.rows[key] for name, key in keys.items() if key in found.rows}
    return Speeds(rows, found.runs, {name: found.failures[key] for name, key in keys.items() if key in found.failures}, keys)


def time_shapes(groups: Sequence[Mapping[str, Shape]], setting: Setting, timing: Timing) -> Speeds:
    """Every shape against dense, those of a group side by side; what an earlier run on this machine timed the same way is kept."""
    depends = identity(setting) | {"recipe": timing.recipe.model_dump(mode="json"), "machine": fingerprint(setting.options.threads)}
    folder, start = setting.records / TIMINGS, digest(depends)[:12]
    folder.mkdir(exist_ok=True)
    found = Speeds()
    shapes = {name: shape for group in groups for name, shape in group.items()}
    for place in sorted(folder.glob(f"{start}-*.json")):
        take(found, read_json(place), shapes)
    for batch in _batches(groups, found, timing) if timing.new else ():
        try:
            run = _measured(batch, setting, timing.recipe)
        except TrimlineError as error:
            found.failures |= dict.fromkeys(batch, without_paths(error.problem, setting))
            continue
        write_json(folder / f"{start}-{digest(batch)[:12]}.json", run)
        take(found, run, shapes)
    return found


def _batches(groups: Sequence[Mapping[str, Shape]], found: Speeds, timing: Timing) -> list[dict[str, Shape]]:
    """What waits to be timed, in runs of so many."""
    runs: list[dict[str, Shape]] = []
    for group in groups:
        waiting = [name for name in group if not _is_known(found, name, timing.again) and all(name not in run for run in runs)]
        parts = (waiting[first : first + timing.together] for first in range(0, len(waiting), timing.together))
        runs += [{name: group[name] for name in part} for part in parts]
    return runs


def _is_known(found: Speeds, name: str, again: bool) -> bool:
    return name in found.rows and not (again and not _holds(found.rows[name]))


def _holds(metrics: Mapping[str, Any]) -> bool:
    return all(row["control_holds"] for row in metrics.values())


def _measured(batch: Mapping[str, Shape], setting: Setting, recipe: BenchmarkSlice) -> dict[str, Any]:
    dense = shape_of(Checkpoint(setting.source).geometry)
    folders = {name: exported(shape, setting) for name, shape in batch.items()}
    return measure(exported(dense, setting), folders, recipe, setting.options, QUIET)


def identity(setting: Setting) -> dict[str, Any]:
    """What a graph and its speed depend on beside the shape."""
    return {"model": setting.identity["model"], "export": EXPORT.model_dump(mode="json")}


def exported(shape: Shape, setting: Setting) -> Path:
    """The ONNX folder of a shape, made unless it is there."""
    folder = setting.work / f"shape-{digest(identity(setting) | {'shape': shape})[:12]}"
    return made(folder, lambda out: export_shape(setting.source, shape, setting.options, out))


def take(found: Speeds, run: dict[str, Any], shapes: Mapping[str, Shape]) -> None:
    """The two comparisons that the table shows, of every shape of one run; a resolved one gives way to nothing."""
    rows: dict[str, dict[str, Any]] = {}
    for row in run["comparisons"]:
        if row["model"] in shapes and (row["workload"], row["metric"]) in BARS:
            rows.setdefault(row["model"], {})[row["metric"]] = row
    taken = {name: metrics for name, metrics in rows.items() if name not in found.rows or _holds(metrics)}
    if taken:
        found.rows |= taken
        found.runs.append(run)
