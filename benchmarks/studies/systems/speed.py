"""How fast the rows are: interleaved runs of a few shapes each, dense and dense again in every one.

A process per model holds its weights, so all shapes at once would not fit in memory. Every speed-up is against dense in
the same rounds, so rows of different runs compare; the openings of several runs are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.formulas.statistics import Ratio, by_opening, pooled_ratio
from benchmarks.latency.cut_models import EXPORT, Shape, export_shape, shape_of
from benchmarks.machine.environment import fingerprint
from benchmarks.recipe import BenchmarkSlice, Phase
from benchmarks.results.document import Results, read_file
from benchmarks.results.target import series
from benchmarks.stage import measure
from benchmarks.studies.realised_gain import BARS
from benchmarks.studies.systems.measure import Record, Setting, without_paths
from benchmarks.studies.systems.row import made
from benchmarks.studies.systems.systems import ALL_OURS
from benchmarks.studies.systems.tables import AgainstDense, ByPhase
from benchmarks.timing.timing import DENSE
from pipeline.artefacts.artefact import digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events

QUIET = Events()
WORKLOADS = {phase: workload for workload, phase in BARS}  # that the table shows
RUNS = 2
TOGETHER = 9  # the shapes of one size, and further ones of ours beside it
ROUNDS = 50  # shapes of as many weights differ by 3 % in half of that
TIMINGS = "timed"  # folder beside the rows' records


@dataclass
class Speeds:
    """What was timed.

    Attributes:
        rows: by row name, then phase, against dense.
        runs: everything that was measured, run by run.
        failures: row name to the sentence that says why it has no speed.
        models: row name to the name that its shape has in the runs.
    """

    rows: dict[str, ByPhase] = field(default_factory=dict)
    runs: list[Results] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def why(self, name: str) -> dict[str, str]:
        """What a row's record says of a failure to time it."""
        return {"untimed": self.failures[name]} if name in self.failures else {}

    def decode_ratio(self, first: str, second: str) -> Ratio | None:
        """How many times faster one row decodes than another, from the runs that both were timed in; None where there are none."""
        return self.ratio("decode", *(self.models.get(row, row) for row in (first, second)))

    def ratio(self, phase: Phase, first: str, second: str) -> Ratio | None:
        """The same of two models of the runs, from all runs whose control holds."""
        both = [run for run in self.runs if {first, second} <= set(run.samples[WORKLOADS[phase]]) and _holds(run, phase)]
        pairs = [[rounds for run in both for rounds in openings(run, phase, name)] for name in (first, second)]
        return pooled_ratio(*pairs) if both else None


def openings(run: Results, phase: Phase, name: str) -> list[Sequence[float]]:
    """Seconds of a model, round by round and by opening."""
    return by_opening(series(run, phase, name), run.asked.rounds_per_opening)


def _holds(run: Results, phase: Phase) -> bool:
    """Whether dense agreed with itself."""
    return all(row.control_holds for row in run.comparisons if (row.workload, row.phase) == (WORKLOADS[phase], phase))


@dataclass(frozen=True)
class TimingPlan:
    """How shapes are timed.

    Attributes:
        recipe: what is timed.
        together: shapes per run, without the two dense models.
        runs: of every shape.
        new: also what has no timings yet; without, only what is kept counts.
        again: also what has timings that were not resolved.
    """

    recipe: BenchmarkSlice
    together: int = TOGETHER
    runs: int = RUNS
    new: bool = True
    again: bool = False


def timings(records: Sequence[Record], setting: Setting, timing: TimingPlan) -> Speeds:
    """Speeds of every row with units removed: those of its shape, which rows that have it share."""
    timed = [record for record in records if is_timed(record)]
    shapes = [{_name(record["shape"]): record["shape"] for record in rows} for rows in by_size(timed)]
    return of_rows(time_shapes(shapes, setting, timing), timed)


def by_size(records: Sequence[Record]) -> list[list[Record]]:
    """Rows that are to be compared with each other: all systems at a size, and sizes of our own up to the next."""
    groups: list[list[Record]] = []
    for record in records:
        if not groups or (record["system"] not in ALL_OURS and groups[-1][-1]["system"] in ALL_OURS):
            groups.append([])
        groups[-1].append(record)
    return groups


def _name(shape: Shape) -> str:
    return digest(shape)[:12]


def is_timed(record: Record) -> bool:
    """Whether a row has a shape of its own: neither dense, nor one of zeros, nor failed."""
    return "shape" in record and record["system"] != "dense" and "zeros" not in record


def of_rows(found: Speeds, records: Sequence[Record]) -> Speeds:
    """Speeds by row name, from those by shape."""
    keys = {record["name"]: _name(record["shape"]) for record in records}
    rows = {name: found.rows[key] for name, key in keys.items() if key in found.rows}
    return Speeds(rows, found.runs, {name: found.failures[key] for name, key in keys.items() if key in found.failures}, keys)


def time_shapes(groups: Sequence[Mapping[str, Shape]], setting: Setting, timing: TimingPlan) -> Speeds:
    """Every shape against dense, those of a group side by side; nothing is timed that this machine timed the same way so many times."""
    asked = timing.recipe.model_dump(mode="json", exclude={"most_seconds"})  # how long it may go on changes no value
    depends = identity(setting) | {"recipe": asked, "machine": fingerprint(setting.options.threads)}
    folder, start = setting.records / TIMINGS, digest(depends)[:12]
    folder.mkdir(exist_ok=True)
    found = Speeds()
    shown = {name for group in groups for name in group}
    kept = (read_file(place, Results) for place in sorted(folder.glob(f"{start}-*.json")))
    found.runs += [run for run in kept if shown & set(run.samples[WORKLOADS["decode"]])]
    for number in range(1, timing.runs + 1 if timing.new else 0):
        for batch in _batches(groups, found, number, timing):
            try:
                run = _measured(batch, setting, timing.recipe)
            except TrimlineError as error:
                found.failures |= dict.fromkeys(batch, without_paths(error.problem, setting))
                continue
            stem = f"{start}-{digest(batch)[:12]}"
            run.write(folder / f"{stem}-{1 + len(list(folder.glob(f'{stem}-*.json')))}.json")
            found.runs.append(run)
    found.failures = {name: why for name, why in found.failures.items() if not _times_timed(found, name, resolved=False)}
    found.rows = {name: row for name in shown if (row := _row(found, name))}
    return found


def _batches(groups: Sequence[Mapping[str, Shape]], found: Speeds, number: int, timing: TimingPlan) -> list[dict[str, Shape]]:
    """The runs in which shapes are timed for the so-manyth time.

    Where one of a run waits for it all are timed, since only those of one run are compared opening by opening.
    """
    runs: list[dict[str, Shape]] = []
    for group in groups:
        planned = found.failures.keys() | {name for run in runs for name in run}
        names = [name for name in group if name not in planned]
        parts = (names[first : first + timing.together] for first in range(0, len(names), timing.together))
        waits = lambda name: _times_timed(found, name, timing.again) < number  # noqa: E731
        runs += [{name: group[name] for name in part} for part in parts if any(map(waits, part))]
    return runs


def _times_timed(found: Speeds, name: str, resolved: bool) -> int:
    """In how many runs; only of those that say something, where that is asked."""
    return sum(
        name in run.samples[WORKLOADS["decode"]] and (not resolved or all(_holds(run, phase) for phase in WORKLOADS)) for run in found.runs
    )


def _row(found: Speeds, name: str) -> ByPhase:
    """Against dense, by phase: of all runs whose control holds, or of the last run of all, which then does not count."""
    row: dict[Phase, AgainstDense] = {}
    for phase, workload in WORKLOADS.items():
        if ratio := found.ratio(phase, DENSE, name):
            row[phase] = AgainstDense(ratio, control_holds=True)
        elif last := [run for run in found.runs if name in run.samples[workload]]:
            pair = (openings(last[-1], phase, model) for model in (DENSE, name))
            row[phase] = AgainstDense(pooled_ratio(*pair), control_holds=False)
    return row


def _measured(batch: Mapping[str, Shape], setting: Setting, recipe: BenchmarkSlice) -> Results:
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
