"""The benchmark stage: dense and smaller models timed side by side, each in a process of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine.environment import environment, load_average
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.document import PAGE, RESULTS, Results
from benchmarks.results.from_samples import results_of
from benchmarks.results.markdown import render
from benchmarks.runtimes.names import FORMS, Multiplied, computes_on
from benchmarks.timing.child import BenchmarkWorker
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, Sample, time_workloads
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions


def benchmark(
    dense: Path,
    candidates: Mapping[str, Path],
    recipe: BenchmarkSlice,
    options: RunOptions,
    out: Path,
    events: Events,
    accuracy: Mapping[str, float],
) -> None:
    """Writes ``results.json`` (everything, raw samples included) and ``results.md`` (the tables) into ``out``.

    Args:
        dense: exported folder of the dense model.
        candidates: exported folders by name, such as ``pruned``.
        accuracy: perplexity by name, ``dense`` included; a model without one is measured but not printed.

    Raises:
        TrimlineError: a folder is no export, a candidate has a reserved name, or a measuring process fails.
    """
    results = measure(dense, candidates, recipe, options, events).with_perplexities(accuracy)
    results.write(out / RESULTS)
    (out / PAGE).write_text(render(results), encoding="utf-8")


def measure(dense: Path, candidates: Mapping[str, Path], recipe: BenchmarkSlice, options: RunOptions, events: Events) -> Results:
    """Everything that ``results.json`` holds but the perplexities."""
    if reserved := {DENSE, CONTROL} & set(candidates):
        raise TrimlineError(f"No candidate may be called {min(reserved)!r}.", "Give it another name.")
    folders = {DENSE: dense} | dict(candidates)
    subjects = {name: Subject.read(name, folder, recipe.runtime, options.device) for name, folder in folders.items()}
    precision = subjects[DENSE].multiplied(computes_on(recipe.runtime, options.device))
    before, ceilings = load_average(), [_ceilings(options, recipe, precision)]
    with ExitStack() as running:
        models = {
            name: running.enter_context(MeasuredModel(partial(BenchmarkWorker, name), subjects.get(name, subjects[DENSE]), recipe, options))
            for name in (*subjects, CONTROL)
        }
        with events.progress("timing dense and smaller, in turns", recipe.rounds * len(recipe.workloads)) as advance:
            timed = time_workloads(models, recipe, advance)
        facts = {name: model.facts() for name, model in models.items()}
    ceilings.append(_ceilings(options, recipe, precision))
    surroundings = environment(options.threads) | {"load_average": {"before": before, "after": load_average()}}
    return results_of(subjects, timed, recipe, ceilings, facts, precision, surroundings)


class MeasuredModel:
    """A model in a process of its own, and what it took to open it; a context manager that leaves no process behind.

    A process may stay some per cent faster or slower than another that computes the same. So that openings are independent of each other, each
    is in a new one, but for runtimes that take long to start.

    Args:
        start: a new process.
    """

    def __init__(self, start: Callable[[], BenchmarkWorker], subject: Subject, recipe: BenchmarkSlice, options: RunOptions) -> None:
        self._start, self._child, self._subject = start, start(), subject
        self._renewed = FORMS[recipe.runtime] != "checkpoint" and computes_on(recipe.runtime, options.device) == "cpu"
        requests = [(workload.prompt, workload.output, workload.batch) for workload in recipe.workloads]
        self._how = {"threads": options.threads, "runtime": recipe.runtime, "device": options.device, "requests": requests}
        self._firsts: dict[str, list[Sample]] = {workload.name: [] for workload in recipe.workloads}
        self._before: list[int | None] = []
        self._load: list[float] = []
        self._pin()

    def __enter__(self) -> MeasuredModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.__exit__()

    def _pin(self) -> None:
        self._child.ask("pin", threads=self._how["threads"])

    def open(self) -> None:
        """Loads the model, letting go of what was loaded before."""
        if self._load and self._renewed:
            self._child.__exit__()
            self._child = self._start()
            self._pin()
        reply = self._child.ask("load", folder=str(self._subject.folder.resolve()), **self._how)
        self._load.append(reply["seconds"])
        self._before.append(reply["before"])

    def run(self, workload: Workload, seed: int) -> Sample:
        """One request; the first of each workload after an opening is kept as a cold start's too."""
        sizes = {"prompt": workload.prompt, "output": workload.output, "batch": workload.batch}
        sample = Sample(**self._child.ask("run", **sizes, vocab=self._subject.geometry.vocab, seed=seed))
        if len(firsts := self._firsts[workload.name]) < len(self._load):
            firsts.append(sample)
        return sample

    def facts(self) -> dict[str, Any]:
        """Cold start (medians in seconds, and every opening's) and memory (bytes)."""
        cold = {"load": self._load, "first_request": [sample.prefill for sample in next(iter(self._firsts.values()))]}
        # An opening after a workload has enough rounds lacks its request: the sum is over openings that have all.
        whole = [sum(sample.seconds for sample in samples) for samples in zip(*self._firsts.values(), strict=False)]
        return {
            "cold_start": {name: statistics.median(samples) for name, samples in cold.items()},
            "cold_start_samples": cold,
            "first_requests": {"seconds": statistics.median(whole), "samples": whole},
            "energy": self._child.ask("energy"),
            "memory": self._child.ask("memory") | {"before_load": self._before[0]},
        }


def _ceilings(options: RunOptions, recipe: BenchmarkSlice, precision: Multiplied) -> dict[str, list[float]]:
    """Measured in a process of its own, apart from the models': its array is half a gigabyte."""
    with BenchmarkWorker("the machine") as child:
        child.ask("pin", threads=options.threads)
        return child.ask("ceilings", threads=options.threads, runtime=recipe.runtime, device=options.device, precision=precision)
