"""How fast the points of a sweep are: in interleaved runs of a few at a time, dense and dense again in every one.

A process per model holds its weights, so all points at once would not fit in memory. Every speed-up is against dense
in the same rounds, so points of different runs compare; a point that was timed stays timed when the grid grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine.environment import fingerprint, versions
from benchmarks.recipe import BenchmarkSlice
from benchmarks.stage import benchmark
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.artefacts.artefact import RECORD, make_artefact
from pipeline.artefacts.inputs import Watched
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from trimline.stages.names import TIMINGS
from trimline.stages.table import stage_of

TOGETHER = 4
MODELS = 3  # dense, pruned, dense again: what a recipe's time limit is meant for

Spec = dict[str, Any]


def spec_of(
    store: Path,
    recipe: BenchmarkSlice,
    options: RunOptions,
    together: int,
    family: str,
    dense: Mapping[str, Any],
    points: Mapping[str, Any],
) -> Spec:
    """What ``time_points`` takes, as plain values.

    Args:
        store: where the timings go.
        recipe: what is timed.
        options: threads.
        together: points per run, without the two dense models.
        family: what transformers calls the models' family.
        dense: ``key``, ``folder`` and ``perplexity`` of the dense model.
        points: the same by name.
    """
    return {
        "store": str(store),
        "recipe": recipe.model_dump(mode="json"),
        "options": options.as_record(),
        "together": together,
        "family": family,
        "dense": dict(dense),
        "points": {name: dict(point) for name, point in points.items()},
    }


def time_points(spec: Spec, events: Events) -> dict[str, Any]:
    """Times every point that was not timed yet on this machine, in this recipe.

    Returns:
        ``timed``: point to the folder with its results.json (``folder``) and its name there (``name``);
        ``failed``: point to the sentence that says why it has no speed.
    """
    base = _depends(spec)
    known = dict(_known(Path(spec["store"]), base))
    failed: dict[str, str] = {}
    for batch in _batches(spec, known):
        try:
            artefact = _timed_together(spec, base, batch, events)
        except TrimlineError as error:
            failed |= dict.fromkeys((point["key"] for point in batch.values()), str(error))
            continue
        known |= {point["key"]: {"folder": artefact, "name": name} for name, point in batch.items()}
    keys = {name: point["key"] for name, point in spec["points"].items()}
    return {
        "timed": {name: known[key] for name, key in keys.items() if key in known},
        "failed": {name: failed[key] for name, key in keys.items() if key in failed},
    }


def _depends(spec: Spec) -> dict[str, Any]:
    """What a timing depends on beside the points: machine, runtime, threads, dense."""
    return {
        "recipe": spec["recipe"],
        "options": spec["options"],
        "machine": fingerprint(spec["options"]["threads"]),
        "dense": spec["dense"]["key"],
        "together": spec["together"],
        "code": stage_of(TIMINGS).code(None, spec["family"]),
        "libraries": versions(),
    }


def _known(store: Path, base: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Key of every point that was timed under the same circumstances, and where."""
    for record in sorted(store.glob(f"{TIMINGS.stage}-*/{RECORD}")):
        depends = read_json(record)["depends"]
        if {key: depends.get(key) for key in base} == base:
            for name, key in depends["points"].items():
                yield key, {"folder": str(record.parent), "name": name}


def _batches(spec: Spec, known: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Points to time together; of two that are the same file, one."""
    new: dict[str, tuple[str, Any]] = {}
    for name, point in spec["points"].items():
        if point["key"] not in known:
            new.setdefault(point["key"], (name, point))
    waiting = list(new.values())
    for start in range(0, len(waiting), spec["together"]):
        yield dict(waiting[start : start + spec["together"]])


def _timed_together(spec: Spec, base: Mapping[str, Any], batch: Mapping[str, Any], events: Events) -> str:
    recipe = longer(BenchmarkSlice.model_validate(spec["recipe"]), len(batch))
    accuracy = {name: point["perplexity"] for name, point in batch.items()} | {DENSE: spec["dense"]["perplexity"]}
    folders = {name: Path(point["folder"]) for name, point in batch.items()}
    depends = {**base, "points": {name: point["key"] for name, point in batch.items()}}
    dense, options = Path(spec["dense"]["folder"]), RunOptions(**spec["options"])
    made = make_artefact(
        Path(spec["store"]),
        TIMINGS.stage,
        depends,
        lambda out: benchmark(dense, folders, recipe, options, out, events, accuracy),
        events,
        lane=f"{len(batch)} points",
        unchanged=Watched(dense, *folders.values()).demand_unchanged,
    )
    return str(made.folder)


def longer(recipe: BenchmarkSlice, points: int) -> BenchmarkSlice:
    """With the time limit that as many models need beside the two dense ones: a round has one request of each."""
    models = points + len((DENSE, CONTROL))
    return recipe.model_copy(update={"most_seconds": recipe.most_seconds * max(1.0, models / MODELS)})
