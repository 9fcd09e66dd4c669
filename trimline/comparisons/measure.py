"""Results timed anew, side by side in interleaved runs of a few at a time; the first takes part in every one, twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.formulas.statistics import by_opening, control_holds, pooled_ratio
from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import Results
from benchmarks.runtimes.names import FORMS
from benchmarks.stage import measure
from benchmarks.timing.timing import CONTROL, DENSE
from exporters.folder import EXPORT
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from trimline.comparisons.result import HERE, Axis, Result, TimedWorkload, machine_of
from trimline.reporting.data import Measure
from trimline.stages.collect import environment_rows
from trimline.sweeps.timing import longer

RUNTIME = "onnxruntime"
Documents = Mapping[str, Results]  # of the benchmark, by run


def measured(
    results: Sequence[Result], recipe: BenchmarkSlice, options: RunOptions, events: Events, together: int
) -> tuple[list[Result], list[Results]]:
    """The same results with speeds of here and now, over the first of them, and the benchmark's document of every run.

    The first stands where the dense model usually does: it is timed in every run, twice, as its own control.

    Args:
        results: at least two; each with a folder that can be timed.
        recipe: what is timed.
        options: threads.
        events: progress.
        together: results per run beside the first; a process of each holds its weights.

    Raises:
        TrimlineError: a result has nothing that can be timed, or a measuring process fails.
    """
    folders = {result.name: _folder(result) for result in results}
    first, *others = results
    runs: dict[str, Results] = {}
    found: list[Result] = []
    for start in range(0, len(others), together):
        group = others[start : start + together]
        run = f"{HERE}{len(runs) + 1}"
        asked = longer(recipe.model_copy(update={"runtime": RUNTIME}), len(group))
        runs[run] = measure(folders[first.name], {other.name: folders[other.name] for other in group}, asked, options, events)
        found += [_again(other, other.name, {run: runs[run]}, first) for other in group]
    return [_again(first, DENSE, runs, first), *found], list(runs.values())


def _again(result: Result, name: str, runs: Documents, first: Result) -> Result:
    """A result by the runs that it was timed in, in which it has a name."""
    documents = list(runs.values())
    axes: list[Axis] = [(row.workload, row.phase) for row in documents[0].timings if row.model == name]
    machine = machine_of(environment_rows(documents[0]), first.recipe)
    return replace(result, speeds={axis: _timed(runs, name, axis) for axis in axes}, machine=machine, dense=first.name)


def _folder(result: Result) -> Path:
    """Its graph, where its perplexity is that of the graph too."""
    export = result.recipe.export
    if export is None:
        raise TrimlineError(f"{result.name} has no graph, and --measure times graphs.", "Run its recipe with an export.")
    if result.timed is None or not (result.timed / EXPORT).is_file():
        raise TrimlineError(f"{result.name} has no ONNX folder that could be timed.", "Give the output folder of its run, or its package.")
    runtime, precision = result.recipe.benchmark.runtime, export.precision
    if FORMS[runtime] != "onnx" and precision != "fp32":
        raise TrimlineError(
            f"The perplexity of {result.name} is what {runtime} computes, not its {precision} graph.",
            "Run its recipe with benchmark.runtime onnxruntime, which evaluates the graph.",
        )
    return result.timed


def _timed(runs: Documents, name: str, axis: Axis) -> TimedWorkload:
    """Speed-up over the first; of the first itself 1, with the control's interval."""
    each = next(document.asked.rounds_per_opening for document in runs.values())
    own, first, again = ({run: _times(document, model, axis) for run, document in runs.items()} for model in (name, DENSE, CONTROL))
    openings = [[opening for times in of_runs.values() for opening in by_opening(times, each)] for of_runs in (first, own, again)]
    ratio = pooled_ratio(openings[0], openings[2 if name == DENSE else 1])
    speedup = Measure(1.0 if name == DENSE else ratio.value, low=ratio.low, high=ratio.high)
    latency = median(seconds for times in own.values() for seconds in times)
    holds = any(control_holds(pooled_ratio(by_opening(first[run], each), by_opening(again[run], each))) for run in runs)
    return TimedWorkload(latency, speedup, holds, own, each)


def _times(document: Results, model: str, axis: Axis) -> tuple[float, ...]:
    workload, phase = axis
    return tuple(document.samples[workload][model].seconds(phase))
