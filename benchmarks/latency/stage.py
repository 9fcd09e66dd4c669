"""The latency stage: a table of what each part of a block takes in the runtime that will serve the result."""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.formulas.statistics import paired_ratio, within_band
from benchmarks.latency.cut_models import Shape
from benchmarks.latency.fit import fit, misfit
from benchmarks.latency.shapes import Alike, Form, batches, shapes_to_time
from benchmarks.machine.environment import fingerprint, load_average
from benchmarks.recipe import BenchmarkSlice
from benchmarks.runtimes.names import place
from benchmarks.stage import MeasuredModel
from benchmarks.timing.child import BenchmarkWorker
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, time_workloads
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.prune.latency import Entry, LatencyTable, identity

TOGETHER = 4  # shapes per run, beside dense and dense again
SAMPLES = "samples.json"
Key = tuple[str, str]  # workload, phase


def latency_table(source: Path, form: Form, tile: int, out: Path, events: Events, blocks: int | None = None) -> None:
    """Stage: writes ``latency.json``, and ``samples.json`` with what was measured, every round included.

    Args:
        source: dense checkpoint folder.
        form: runtime, workloads and how models are written for them.
        tile: FFN widths are multiples of it.
        out: empty folder.
        events: progress.
        blocks: of the models that are timed; as many as needed by default.

    Raises:
        TrimlineError: the model's blocks differ, or a model cannot be exported or timed.
    """
    geometry = Checkpoint(source).geometry
    shapes = shapes_to_time(geometry, tile, form.weight_bytes, blocks)
    with tempfile.TemporaryDirectory(dir=out, prefix=".models-") as work:
        measured = time_shapes(source, {name: alike.shape(geometry) for name, alike in shapes.items()}, form, Path(work), events)
    table, fitted = _table(geometry, shapes, measured, form, tile)
    table.write(out)
    write_json(out / SAMPLES, measured | {"misfit": fitted})
    worst = max((abs(error) for by_shape in fitted.values() for error in by_shape.values()), default=0.0)
    noisy = "" if control_holds(measured) else "; dense did not agree with itself meanwhile, so predictions may be off"
    events.note(f"{len(shapes)} shapes timed; the table is within {worst:.1%} of each{noisy}")


def adopt(folder: Path, source: Path, form: Form, tile: int, out: Path, events: Events) -> None:
    """Takes over a table that was measured before, if it says what would be measured now: its entries of the recipe's workloads.

    Raises:
        TrimlineError: it is no table, or one of another model, machine, runtime, precision or grid, or lacks a workload;
            the first difference is named.
    """
    table, geometry = LatencyTable.read(folder), Checkpoint(source).geometry
    table.check(geometry)
    wanted = setting_of(geometry, form, tile)
    for what in ("model", "export", "build", "runtime", "tile", "machine"):
        if table.setting.get(what) != wanted[what]:
            raise TrimlineError(f"The latency table in {folder} was measured for another {what}: {_difference(table.setting.get(what), wanted[what])}.",
                                "Leave benchmark.latency_table out, so that one is measured.")  # fmt: skip
    names, known = [workload.name for workload in form.recipe.workloads], {entry.workload for entry in table.entries}
    if lacking := [name for name in names if name not in known]:
        raise TrimlineError(f"The latency table in {folder} does not know the workload {lacking[0]}; it has {', '.join(sorted(known))}.",
                            "Time one of those, or leave benchmark.latency_table out, so that one is measured.")  # fmt: skip
    if not table.setting["control_holds"]:
        events.note(f"dense did not agree with itself while the table in {folder} was measured, so predictions may be off")
    # In the recipe's order: `decode` is of the first workload that has steps.
    replace(table, entries=tuple(entry for name in names for entry in table.entries if entry.workload == name)).write(out)


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        key = next(key for key in {**wanted, **found} if found.get(key) != wanted.get(key))
        return f"{key} {_difference(found.get(key), wanted.get(key))}"
    return f"{found}, and here {wanted}"


def setting_of(geometry: Geometry, form: Form, tile: int) -> dict[str, Any]:
    """What a table depends on: the artefact's key. Weights are not in it: dense kernels take as long for one value as for another."""
    return {
        "model": identity(geometry) | {"block": [geometry.blocks[0].ffn, geometry.blocks[0].kv_groups], "blocks": len(geometry.blocks)},
        "export": form.export and form.export.model_dump(mode="json", exclude={"perplexity_bar"}),
        "build": form.build and form.build.model_dump(mode="json"),
        "recipe": form.recipe.model_dump(mode="json", exclude={"latency_table"}),
        "runtime": place(form.recipe.runtime, form.options.device),
        "tile": tile,
        "machine": fingerprint(form.options.threads),
    }


def time_shapes(
    source: Path, shapes: Mapping[str, Shape], form: Form, work: Path, events: Events, together: int = TOGETHER
) -> dict[str, Any]:
    """Every shape against ``dense`` in interleaved rounds, a few at a time; JSON-compatible.

    Returns:
        ``seconds`` by workload, phase and shape: the median of dense over all rounds, divided by a shape's
        speed-up in its own; ``control``: dense over dense again, one ratio per run; ``samples``: by workload and phase, for
        every run the seconds of each model in each round; ``load_average`` at the end.
    """
    runs, folders = [], {DENSE: form.write(source, shapes[DENSE], work / "0")}
    with events.progress("timing shapes", len(shapes)) as advance:
        for number, names in enumerate(batches(list(shapes), together), start=1):
            written = folders | {name: form.write(source, shapes[name], work / f"{number}-{place}") for place, name in enumerate(names)}
            runs.append(_timed(written, form.recipe, form.options))
            for left in work.glob(f"{number}-*"):  # models take more room than anything else here
                shutil.rmtree(left)
            advance(len(names) + (number == 1))
    return _joined(runs, form.recipe.rounds_per_opening) | {"load_average": load_average()}


def _timed(folders: Mapping[str, Path], recipe: BenchmarkSlice, options: RunOptions) -> dict[Key, dict[str, list[float]]]:
    """Seconds of every round, by workload and phase, then model."""
    subjects = {name: Subject.read(name, folder, recipe.runtime, options.device) for name, folder in folders.items()}
    with ExitStack() as running:
        models = {
            name: running.enter_context(MeasuredModel(partial(BenchmarkWorker, name), subjects.get(name, subjects[DENSE]), recipe, options))
            for name in (*subjects, CONTROL)
        }
        timed = time_workloads(models, recipe)
    found: dict[Key, dict[str, list[float]]] = {}
    for workload, by_model in timed.items():
        for name, samples in by_model.items():
            for phase, seconds in samples.by_phase().items():
                found.setdefault((workload, phase), {})[name] = seconds
    return found


def _joined(runs: Sequence[Mapping[Key, Mapping[str, list[float]]]], each: int) -> dict[str, Any]:
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    control: dict[str, dict[str, list[float]]] = {}
    rounds: dict[str, dict[str, int]] = {}
    samples: dict[str, dict[str, list[Mapping[str, list[float]]]]] = {}
    for workload, phase in runs[0]:
        of_runs = [run[workload, phase] for run in runs]
        base = statistics.median([sample for run in of_runs for sample in run[DENSE]])
        by_shape = {DENSE: base}
        faster = [{name: paired_ratio(run[DENSE], run[name], each=each).value for name in run if name != DENSE} for run in of_runs]
        for ratios in faster:
            by_shape |= {name: base / ratio for name, ratio in ratios.items() if name != CONTROL}
        seconds.setdefault(workload, {})[phase] = by_shape
        control.setdefault(workload, {})[phase] = [ratios[CONTROL] for ratios in faster]
        rounds.setdefault(workload, {})[phase] = min(len(run[DENSE]) for run in of_runs)
        samples.setdefault(workload, {})[phase] = of_runs
    return {"seconds": seconds, "control": control, "rounds": rounds, "samples": samples}


def _table(
    geometry: Geometry, shapes: Mapping[str, Alike], measured: Mapping[str, Any], form: Form, tile: int
) -> tuple[LatencyTable, dict[str, dict[str, float]]]:
    """The table, and how far it is from what it was made of."""
    entries, fitted = [], {}
    for workload in form.recipe.workloads:
        for phase, seconds in measured["seconds"][workload.name].items():
            times = fit(shapes, seconds, _noise(measured["control"][workload.name][phase]))
            entries.append(Entry(workload.name, phase, workload.steps, times))
            fitted[f"{workload.name} {phase}"] = misfit(times, shapes, seconds)
    setting = setting_of(geometry, form, tile) | {
        "precision": form.precision,
        "shapes": {name: vars(alike) for name, alike in shapes.items()},
        "rounds": measured["rounds"],
        "control": measured["control"],
        "control_holds": control_holds(measured),
    }
    return LatencyTable(identity(geometry), setting, tuple(entries)), fitted


def _noise(control: Sequence[float]) -> float:
    """Relative error of one shape's speed-up, from how far dense was from dense again, which is the error of two."""
    return math.sqrt(statistics.fmean((ratio - 1) ** 2 for ratio in control) / 2)


def control_holds(measured: Mapping[str, Any]) -> bool:
    """Whether dense agreed with itself in every run."""
    return all(within_band(ratio) for phases in measured["control"].values() for ratios in phases.values() for ratio in ratios)
