"""One model that was evaluated and timed, in the form that comparisons take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.runtimes.names import FORMS as RUNTIME_FORMS
from trimline.recipe import Recipe
from trimline.reporting.data import ByText, Measure, Phase, TaskRow

Axis = tuple[str, Phase]
HERE = "this comparison, run "  # and a number: a run of ``--measure``
FORMS = ("processor", "threads", "memory", "GPU")
LIBRARIES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tensorrt": ("tensorrt",), "torch": ("torch",)}


@dataclass(frozen=True)
class TimedWorkload:
    """One workload of one result.

    Attributes:
        latency: seconds of one call, the median.
        speedup: over dense in the same rounds.
        resolved: whether that run's control held; of one that was timed in several, whether any did.
        runs: seconds per round, where they were kept, by what tells interleaved runs apart: those of one pair round by round.
        each: how many of them, one after the other, are of one opening.
    """

    latency: float
    speedup: Measure
    resolved: bool
    runs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    each: int = 1


@dataclass(frozen=True)
class Result:
    """One model that was evaluated and timed.

    Attributes:
        name: as it is listed.
        series: of results that differ in how much went only; empty for a single one.
        perplexity: with what is known of its uncertainty.
        losses: per window, nats per token.
        text: what the losses are of: model family, text, window; losses of the same pair window by window.
        dense: what the speed-ups are over: model and form.
        machine: what it was timed on and in.
        speeds: by workload and phase.
        parameters: every number in the checkpoint.
        timed: folder that can be timed again; None where there is none.
        recipe: where it came from.
        by_text: the checkpoint beside the dense one on every text that evaluates, where that was kept.
        tasks: of lm-eval, beside the dense one, where the recipe named some.
    """

    name: str
    perplexity: Measure
    losses: tuple[float, ...]
    text: str
    dense: str
    machine: Mapping[str, str]
    speeds: Mapping[Axis, TimedWorkload]
    parameters: int | None
    recipe: Recipe
    series: str = ""
    by_text: tuple[ByText, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    timed: Path | None = field(default=None, compare=False)


def machine_of(environment: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """What may not differ between speeds that are compared."""
    runtime = recipe.benchmark.runtime
    libraries = next((names for kind, names in LIBRARIES.items() if runtime.startswith(kind)), ())
    return {"runtime": runtime} | {key: environment[key] for key in (*FORMS, *libraries) if key in environment}


def text_of(model: str, sha256: str, recipe: Recipe) -> str:
    """What window losses are of."""
    return f"{model}, text {sha256}, windows of {recipe.evaluate.window}"


def dense_of(model: str, recipe: Recipe) -> str:
    """What speed-ups are over."""
    build = f", engine in {recipe.build.precision}" if recipe.build else ""
    reads = RUNTIME_FORMS[recipe.benchmark.runtime] != "checkpoint"
    graph = f"{recipe.export.precision}, {recipe.export.lowering} graph" if recipe.export and reads else recipe.benchmark.runtime
    return f"{model} in {graph}{build}"
