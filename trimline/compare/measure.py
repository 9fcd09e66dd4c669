"""Results timed anew, side by side in one interleaved run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.recipe import BenchmarkSlice
from benchmarks.runtimes import FORMS
from benchmarks.stage import measure
from benchmarks.statistics import control_holds, paired_ratio
from benchmarks.subject import EXPORT
from benchmarks.timing import CONTROL, DENSE
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions
from trimline.collect import environment_rows
from trimline.compare.result import Axis, Result, Timed, machine_of
from trimline.reporting.data import Measure

RUNTIME = "onnxruntime"
RUN = "this comparison"
MODELS = 3  # what a recipe's time limit is meant for


def measured(results: Sequence[Result], recipe: BenchmarkSlice, options: RunOptions, events: Events) -> tuple[list[Result], dict[str, Any]]:
    """The same results with speeds of here and now, over the first of them, and the benchmark's document.

    The first stands where the dense model usually does: it is timed twice, as its own control.

    Args:
        results: at least two; each with a folder that can be timed.
        recipe: what is timed.
        options: threads.
        events: progress.

    Raises:
        TrimlineError: a result has nothing that can be timed, or a measuring process fails.
    """
    folders = {result.name: _folder(result) for result in results}
    first, *others = results
    longer = recipe.model_copy(update={"most_seconds": recipe.most_seconds * (len(results) + 1) / MODELS, "runtime": RUNTIME})
    document = measure(folders[first.name], {other.name: folders[other.name] for other in others}, longer, options, events)
    machine = machine_of(environment_rows(document), first.recipe)
    again = [
        replace(result, speeds=_speeds(document, result.name if result is not first else DENSE), machine=machine, dense=first.name)
        for result in results
    ]
    return again, document


def _folder(result: Result) -> Path:
    """Its graph, where its perplexity is that of the graph too."""
    if result.timed is None or not (result.timed / EXPORT).is_file():
        raise TrimlineError(f"{result.name} has no ONNX folder that could be timed.", "Give the output folder of its run, or its package.")
    runtime, precision = result.recipe.benchmark.runtime, result.recipe.export.precision
    if FORMS[runtime] != "onnx" and precision != "fp32":
        raise TrimlineError(
            f"The perplexity of {result.name} is what {runtime} computes, not its {precision} graph.",
            "Run its recipe with benchmark.runtime onnxruntime, which evaluates the graph.",
        )
    return result.timed


def _speeds(document: Mapping[str, Any], name: str) -> dict[Axis, Timed]:
    found: dict[Axis, Timed] = {}
    for row in document["timings"]:
        if row["model"] == name:
            axis = (row["workload"], row["metric"])
            found[axis] = _timed(document, name, axis, row["seconds"]["p50"])
    return found


def _timed(document: Mapping[str, Any], name: str, axis: Axis, latency: float) -> Timed:
    """Speed-up over the first; of the first itself 1, with the control's interval."""
    first, again, own = (_times(document, model, axis) for model in (DENSE, CONTROL, name))
    each = int(document["recipe"]["rounds_per_opening"])
    control = paired_ratio(first, again, each=each)
    ratio = control if name == DENSE else paired_ratio(first, own, each=each)
    value = 1.0 if name == DENSE else ratio.value
    return Timed(latency, Measure(value, low=ratio.low, high=ratio.high), control_holds(control), tuple(own), RUN, each)


def _times(document: Mapping[str, Any], model: str, axis: Axis) -> list[float]:
    raw = document["samples"][axis[0]][model]
    return raw["prefill"] if axis[1] == "prefill" else [sum(gaps) / len(gaps) for gaps in raw["gaps"]]
