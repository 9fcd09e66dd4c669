"""The benchmark stage: dense and smaller models timed side by side, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.environment import environment, load_average
from benchmarks.markdown import render
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results import document
from benchmarks.subject import Subject
from benchmarks.timing import CONTROL, DENSE, Runner, Sample, time_workload
from pipeline.checkpoint import write_json
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions


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
    results = measure(dense, candidates, recipe, options, events)
    for name, model in results["models"].items():
        model["perplexity"] = accuracy.get(name)
    write_json(out / "results.json", results)
    (out / "results.md").write_text(render(results), encoding="utf-8")


def measure(dense: Path, candidates: Mapping[str, Path], recipe: BenchmarkSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    """Everything that ``results.json`` holds but the perplexities."""
    if reserved := {DENSE, CONTROL} & set(candidates):
        raise TrimlineError(f"No candidate may be called {min(reserved)!r}.", "Give it another name.")
    subjects = {DENSE: Subject.read(DENSE, dense)} | {name: Subject.read(name, folder) for name, folder in candidates.items()}
    before, ceilings = load_average(), [_ceilings(options)]
    with ExitStack() as running:
        children = {name: running.enter_context(Child(name)) for name in (*subjects, CONTROL)}
        for child in children.values():
            child.ask("pin", threads=options.threads)
        cold = {name: _cold_start(child, subjects.get(name, subjects[DENSE]), recipe, options) for name, child in children.items()}
        runners = {name: runner(child, subjects[DENSE].geometry.vocab) for name, child in children.items()}
        timed = {}
        for workload in recipe.workloads:
            with events.progress(f"timing {workload.name} (prompt/output)", recipe.rounds) as advance:
                timed[workload.name] = time_workload(runners, workload, recipe, advance)
        facts = {name: cold[name] | {"memory": child.ask("memory") | cold[name]["memory"]} for name, child in children.items()}
    ceilings.append(_ceilings(options))
    surroundings = environment(options.threads) | {"load_average": {"before": before, "after": load_average()}}
    return document(subjects, timed, recipe, ceilings, facts) | {"environment": surroundings}


def runner(child: Child, vocab: int) -> Runner:
    """What asks a child for one request."""

    def run(workload: Workload, seed: int) -> Sample:
        return Sample(**child.ask("run", prompt=workload.prompt, output=workload.output, batch=workload.batch, vocab=vocab, seed=seed))

    return run


def _ceilings(options: RunOptions) -> dict[str, list[float]]:
    """Measured in a process of its own, apart from the models': its array is half a gigabyte."""
    with Child("the machine") as child:
        child.ask("pin", threads=options.threads)
        return child.ask("ceilings", threads=options.threads)


def _cold_start(child: Child, subject: Subject, recipe: BenchmarkSlice, options: RunOptions) -> dict[str, dict[str, Any]]:
    """Seconds to load, and of the first request (the first workload's prompt); bytes that the process held before."""
    load = child.ask("load", folder=str(subject.folder.resolve()), threads=options.threads)
    first = runner(child, subject.geometry.vocab)(recipe.workloads[0].model_copy(update={"output": 1}), recipe.seed)
    return {"cold_start": {"load": load["seconds"], "first_request": first.prefill}, "memory": {"before_load": load["before"]}}
