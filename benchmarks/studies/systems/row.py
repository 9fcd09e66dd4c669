"""One row of the results table, in a process of its own: prune, rebuild, evaluate.

``python -m benchmarks.studies.systems.row`` is a worker as ``benchmarks.timing.worker`` is one: peak memory and processor time are then
the row's alone. A plan that is there already is not made again; what is measured before the first cut, once per system.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.latency.cut_models import shape_of
from benchmarks.machine.memory import AnonymousPeak
from benchmarks.studies.systems.asking import TWO_FOUR
from pipeline.architecture.profile import Profile
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.artefacts.artefact import digest, file_digest, whole_folder
from pipeline.artefacts.reach import code_of
from pipeline.calibrate.measurements import Measurements
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.answering import answer_parent, answered
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.prune.allocation.budget import removed_in_every_definition
from pipeline.prune.consumer import Consumer
from pipeline.prune.latency import TABLE, LatencyTable
from pipeline.prune.measure import measure, measured_part
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import plans, prune
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

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
    smaller, cost = dense, None
    if recipe is not None:
        pruning = Pruning(dense, read, PruneSlice.model_validate(recipe), run, Path(table) if table else None)
        known = pruning.kept_measurement(folder.parent)
        if shot is None:
            plan = made(folder / PLAN, partial(pruning.plan, known=known))
        else:
            plan = pruning.kept_shots(folder.parent, known) / str(shot)
        shape = RebuildSlice(profile=Profile(profile))
        smaller = made(folder / MODEL, lambda place: rebuild(dense, plan, shape, run, place, QUIET))
        cost = read_json(plan / COST)
    measured = made(folder / PERPLEXITY, lambda place: evaluate(smaller, read, EvaluateSlice.model_validate(windows), run, place, QUIET))
    found = sizes(Checkpoint(dense), Checkpoint(smaller), recipe)
    return found | {"shape": shape_of(Checkpoint(smaller).geometry), "perplexity": read_json(measured / RESULT), "cost": cost}


@dataclass(frozen=True)
class Pruning:
    """What a row's prune stage is given.

    Attributes:
        source: checkpoint folder of the dense model.
        texts: folder with calibration.txt and evaluation.txt.
        recipe: the steps.
        options: device, dtype and threads.
        table: folder of a latency table, for targets of time.
    """

    source: Path
    texts: Path
    recipe: PruneSlice
    options: RunOptions
    table: Path | None = None

    def kept_measurement(self, work: Path) -> Path | None:
        """What every size of a system measures first, measured once; None where the system measures as it goes."""
        part = measured_part(self.recipe, Checkpoint(self.source).geometry)
        if part is None:
            return None
        with_cost = partial(costed, lambda out: measure(self.source, self.texts, self.recipe, self.options, out, QUIET))
        return made(work / f"measured-{self._depends(part)}", with_cost)

    def kept_shots(self, work: Path, known: Path | None = None) -> Path:
        """One run of the recipe, with the plan after every shot in folders ``1``, ``2``, …, and what it took to get there beside each."""
        part: dict[str, Any] = self.recipe.model_dump(mode="json")
        if self.table is not None:
            part["table"] = file_digest(self.table / TABLE)
        return made(work / f"shots-{self._depends(part)}", partial(self.every_shot, known=known))

    def every_shot(self, out: Path, known: Path | None = None) -> None:
        """The prune stage, writing the plan after every shot; ``known`` is its kept measurement."""
        cost = Cost()
        with cost.peak:
            steps, measurements = resolve_steps(self.recipe, self._consumer), Measurements.read(known) if known else None
            model, windows = opened(self.source, self.texts, self.recipe.calibration, self.options, any(step.reads_text for step in steps))
            with closing(model):
                for number, plan in enumerate(plans(model, windows, steps, QUIET, measurements), start=1):
                    folder = out / str(number)
                    folder.mkdir()
                    plan().write(folder)
                    cost.write(folder, known)

    def plan(self, out: Path, known: Path | None = None) -> None:
        """The prune stage, and beside its plan what it took, the kept measurement ``known`` included."""
        costed(lambda out: prune(self.source, self.texts, self.recipe, self.options, out, QUIET, known, self._consumer), out, known)

    @property
    def _consumer(self) -> Consumer:
        """What targets are stated for."""
        return Consumer(LatencyTable.read(self.table) if self.table else None)

    def _depends(self, part: Any) -> str:
        given = {"part": part, "source": str(self.source), "texts": str(self.texts), "options": self.options.as_record()}
        return digest(given | {"code": code()})[:12]


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
    """Hash of the code that plans come from, all methods and families included."""
    return code_of(("pipeline.prune.measure", "pipeline.prune.stage"))


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


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A whole row, the one thing that is asked for, or a user's error; a fault of ours ends the process."""
    return answered(lambda **what: {"row": run_row(**what)}, **{key: value for key, value in request.items() if key != "do"})


if __name__ == "__main__":
    answer_parent(answer)
