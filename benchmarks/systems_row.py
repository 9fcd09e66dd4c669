"""One row of the results table, in a process of its own: prune, rebuild, evaluate.

``python -m benchmarks.systems_row`` is a worker as ``benchmarks.worker`` is one: peak memory and processor time are then
the row's alone. A plan that is there already is not made again; what is measured before the first cut, once per system.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pipeline
from benchmarks.memory import AnonymousPeak
from benchmarks.systems_list import TWO_FOUR
from benchmarks.systems_shapes import shape_of
from benchmarks.worker import replies_alone, serve
from pipeline.allocation.budget import removed_in_every_definition
from pipeline.allocation.latency import TABLE, LatencyTable
from pipeline.allocation.targets import Consumer
from pipeline.artefact import code_version, digest, file_digest, whole_folder
from pipeline.checkpoint import Checkpoint, read_json, write_json
from pipeline.errors import TrimlineError
from pipeline.evaluate import RESULT, evaluate
from pipeline.events import Events
from pipeline.kept import Kept
from pipeline.measure import measure, measured_part
from pipeline.options import RunOptions
from pipeline.prune import opened, plans, prune
from pipeline.rebuild.stage import rebuild
from pipeline.recipe import EvaluateSlice, Profile, PruneSlice, RebuildSlice
from pipeline.sparsity import two_four_fraction

QUIET = Events()
COST = "cost.json"
PLAN, MODEL, PERPLEXITY = "plan", "model", "perplexity"


def run_row(
    source: str,
    texts: str,
    out: str,
    recipe: dict[str, Any] | None,
    profile: str,
    windows: dict[str, Any],
    options: dict[str, Any],
    shot: int | None = None,
    table: str | None = None,
) -> dict[str, Any]:
    """Everything about one row that is no timing.

    Args:
        source: checkpoint folder of the dense model.
        texts: folder with calibration.txt and evaluation.txt.
        out: folder for plan and checkpoint.
        recipe: what the prune stage is given, or None for the dense model.
        profile: the shape profile of the result.
        windows: of the evaluation text.
        options: device, dtype and threads.
        shot: the row is what the recipe's run leaves after this shot, counted over its steps; None for what it ends with.
        table: folder of a latency table, for targets of time.

    Raises:
        TrimlineError: a stage failed; those before it are kept.
    """
    dense, read, folder, run = Path(source), Path(texts), Path(out), RunOptions(**options)
    times = Path(table) if table else None
    smaller, cost = dense, None
    if recipe is not None:
        wanted = PruneSlice.model_validate(recipe)
        known = kept_measurement(dense, read, wanted, run, folder.parent)
        if shot is None:
            plan = made(folder / PLAN, lambda place: pruned(dense, read, wanted, run, place, known, times))
        else:
            plan = kept_shots(dense, read, wanted, run, folder.parent, known, times) / str(shot)
        shape = RebuildSlice(profile=Profile(profile))
        smaller = made(folder / MODEL, lambda place: rebuild(dense, plan, shape, run, place, QUIET))
        cost = read_json(plan / COST)
    measured = made(folder / PERPLEXITY, lambda place: evaluate(smaller, read, EvaluateSlice.model_validate(windows), run, place, QUIET))
    found = sizes(Checkpoint(dense), Checkpoint(smaller), recipe)
    return found | {"shape": shape_of(Checkpoint(smaller).geometry), "perplexity": read_json(measured / RESULT), "cost": cost}


def kept_measurement(source: Path, texts: Path, recipe: PruneSlice, options: RunOptions, work: Path) -> Path | None:
    """What every size of a system measures first, measured once; None where the system measures as it goes."""
    part = measured_part(recipe, Checkpoint(source).geometry)
    if part is None:
        return None
    with_cost = partial(costed, lambda out: measure(source, texts, recipe, options, out, QUIET))
    return made(work / f"measured-{_depends(part, source, texts, options)}", with_cost)


def kept_shots(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    work: Path,
    known: Path | None = None,
    table: Path | None = None,
) -> Path:
    """One run of a recipe, with the plan after every shot in folders ``1``, ``2``, …, and what it took to get there beside each."""
    part: dict[str, Any] = recipe.model_dump(mode="json")
    if table is not None:
        part["table"] = file_digest(table / TABLE)
    name = f"shots-{_depends(part, source, texts, options)}"
    return made(work / name, lambda out: every_shot(source, texts, recipe, options, out, known, table))


def every_shot(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    out: Path,
    known: Path | None = None,
    table: Path | None = None,
) -> None:
    """The prune stage, writing the plan after every shot."""
    cost = Cost()
    with cost.peak:
        model, windows = opened(source, texts, recipe, options, consumer_of(table))
        with closing(model):
            for number, plan in enumerate(plans(model, windows, recipe, QUIET, Kept.read(known) if known else None), start=1):
                folder = out / str(number)
                folder.mkdir()
                plan().write(folder)
                cost.write(folder, known)


def consumer_of(table: Path | None) -> Consumer:
    """What targets are stated for."""
    return Consumer(LatencyTable.read(table) if table else None)


def _depends(part: Any, source: Path, texts: Path, options: RunOptions) -> str:
    return digest({"part": part, "source": str(source), "texts": str(texts), "options": options.as_record(), "code": code()})[:12]


def pruned(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    out: Path,
    known: Path | None = None,
    table: Path | None = None,
) -> None:
    """The prune stage, and beside its plan what it took, the measurement included that it found kept."""
    costed(lambda out: prune(source, texts, recipe, options, out, QUIET, known, consumer_of(table)), out, known)


class Cost:
    """What work takes from now on: seconds of the wall clock and of all processors, and the most bytes while ``peak`` is open."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), time.process_time()
        self.peak = AnonymousPeak()

    def write(self, out: Path, known: Path | None = None) -> None:
        """So far, with that of the measurement it found kept."""
        cost = {"wall": time.monotonic() - self._wall, "processor": time.process_time() - self._processor}
        most = self.peak.bytes
        if known:
            before = read_json(known / COST)
            cost = {name: seconds + before[name] for name, seconds in cost.items()}
            most = most and before["peak_anonymous"] and max(most, before["peak_anonymous"])
        write_json(out / COST, cost | {"peak_anonymous": most, "code": code()})


def costed(work: Callable[[Path], None], out: Path, known: Path | None = None) -> None:
    """Work into a folder, and beside it what that took, with what a kept measurement had taken."""
    cost = Cost()
    with cost.peak:
        work(out)
    cost.write(out, known)


def code() -> str:
    """Hash of the code that plans come from."""
    return code_version(pipeline)


def sizes(dense: Checkpoint, smaller: Checkpoint, recipe: dict[str, Any] | None) -> dict[str, Any]:
    """Parameters, and what went in every definition; ``zeros`` of the decoder's linears where single weights go.

    Raises:
        TrimlineError: a projection that is to be 2:4 is not.
    """
    geometry = smaller.geometry
    found = {"parameters": geometry.total_parameters(), "removed": removed_in_every_definition(dense.geometry, geometry)}
    patterns = [step.get("pattern") for step in recipe["steps"] if "weight" in step.get("budget", {})] if recipe else []
    if not patterns:
        return found
    zeros = 0
    for block, shape in enumerate(geometry.blocks):
        for linear, _ in geometry.linears(shape):
            name = geometry.family.module(block, linear.name) + ".weight"
            weight = smaller.tensor(name)
            if TWO_FOUR in patterns and two_four_fraction(weight) < 1:
                raise TrimlineError(f"The tensor {name} is not 2:4.", "This is a fault of the method; please report it.")
            zeros += int((weight == 0).sum())
    return found | {"zeros": zeros / geometry.decoder_parameters()}


def made(folder: Path, work: Callable[[Path], None]) -> Path:
    """The folder, filled by ``work`` unless it is there."""
    if not folder.exists():
        with whole_folder(folder) as place:
            work(place)
    return folder


class RowWorker:
    """Answers one kind of request: a whole row."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The row, or a user's error; a fault of ours ends the process."""
        try:
            return {"row": run_row(**{key: value for key, value in request.items() if key != "do"})}
        except TrimlineError as error:
            return {"problem": error.problem, "remedy": error.remedy}


def end_with_parent(parent: int) -> None:
    """Ends this process when its parent has: a row may take hours, and nobody would read it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Serves stdin to stdout."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(RowWorker(), sys.stdin, replies_alone())


if __name__ == "__main__":
    main()
