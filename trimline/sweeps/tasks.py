"""One stage of one point as a task of plain values, which any process that sees the sweep's folder can do."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts.artefact import WORK, Artefact, expected, is_whole
from pipeline.artefacts.inputs import Unchanged
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT
from trimline.recipe import Recipe, checked_recipe
from trimline.stages import lanes
from trimline.stages.lanes import Done, opened
from trimline.stages.names import RECOVERED, Lane, Name
from trimline.stages.run import Run
from trimline.stages.table import row_of


class LaneRun(Run):
    """A run that others share the store with, and what a sweep asks of its lanes."""

    def _forget_states(self) -> None:
        shutil.rmtree(self.store / f"{WORK}{self.done[RECOVERED].folder.name}", ignore_errors=True)

    def timed(self, lane: Lane) -> tuple[str, Path]:
        """Key and folder of what the benchmark opens."""
        name = lanes.timed(self.recipe, lane)
        return self.done[name].key, opened(self.done, name)

    def perplexity(self, lane: Lane) -> dict[str, Any]:
        """What was evaluated, in the form that is timed."""
        return dict(read_json(self.folder(lanes.evaluated(self.recipe, lane)) / RESULT))

    def checkpoint(self, lane: Lane) -> Path:
        """The folder with the lane's weights."""
        return opened(self.done, lanes.origin(self.recipe, lane))

    def folder(self, name: Name) -> Path:
        """Of what was made."""
        return self.done[name].folder


class _Foreseen(LaneRun):
    """Finds out what a stage would make, and makes nothing."""

    def _artefact(self, name: Name, depends: dict[str, Any], work: Callable[[Path], None], unchanged: Unchanged) -> Artefact:
        return expected(self.store, name.stage, depends)

    def _forget_states(self) -> None:
        """Nothing was made, so nothing is over."""


@dataclass(frozen=True)
class Task:
    """A stage to do.

    Attributes:
        recipe: plain values of what the recipe says.
        options: of ``RunOptions``, every setting given, so that a key is the same on every machine.
        output: the sweep's folder.
        job: the name of what to make.
        done: what was made before.
    """

    recipe: dict[str, Any]
    options: dict[str, Any]
    output: str
    job: Name
    done: Done

    @classmethod
    def of(cls, recipe: Recipe, options: RunOptions, output: Path, job: Name, done: Mapping[Name, Artefact]) -> Task:
        # Without defaults: some values are refused where they are given and belong to another kind, such as a temperature without distillation.
        return cls(recipe.model_dump(mode="json", exclude_unset=True), options.as_record(), str(output), job, dict(done))

    @property
    def title(self) -> str:
        """For people."""
        return row_of(self.job).title(self.job)

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {**vars(self), "job": asdict(self.job), "done": record_of(self.done)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Task:
        """What ``as_record`` gave."""
        return cls(**{**record, "job": Name.from_record(record["job"]), "done": done_of(record["done"])})


def record_of(done: Done) -> list[dict[str, Any]]:
    """What was made, JSON-compatible."""
    return [asdict(artefact) | {"folder": str(artefact.folder), "name": asdict(name)} for name, artefact in done.items()]


def done_of(record: Iterable[Mapping[str, Any]]) -> Done:
    """What ``record_of`` gave."""
    return {
        Name.from_record(name): Artefact(**fields | {"folder": Path(fields["folder"])})
        for name, fields in ((entry["name"], {key: value for key, value in entry.items() if key != "name"}) for entry in record)
    }


def foresee(task: Task) -> Done:
    """What the task would make, made or not; empty where the stage only checks, or has nothing to do for this recipe.

    Raises:
        TrimlineError: a check fails.
    """
    run = _run(_Foreseen, task, Events())
    run.do(task.job)
    return _new(run, task)


def perform(task: Task, events: Events, keys: Mapping[str, str] | None = None, patience: float = 0.0) -> Done:
    """Does the stage, or finds that it was done; returns what is new.

    Args:
        task: the stage.
        events: progress.
        keys: of what whoever asked foresees, by name.
        patience: seconds to wait for what was made before to be seen from here.

    Raises:
        TrimlineError: the stage failed, the folder is not to be seen from here, or this machine would make something else.
    """
    _demand_seen(task, time.monotonic() + patience)
    if keys is not None and (own := {str(name): artefact.key for name, artefact in foresee(task).items()}) != keys:
        raise TrimlineError(
            f"{socket.gethostname()} would make another {', '.join(own)} than the machine that asked: its code or libraries differ.",
            "Install the same Trimline and the same versions of its libraries on all nodes.",
        )
    run = _run(LaneRun, task, events)
    run.do(task.job)
    return _new(run, task)


def _demand_seen(task: Task, deadline: float) -> None:
    while missing := [artefact.folder for artefact in task.done.values() if not is_whole(artefact)]:
        if time.monotonic() >= deadline:
            raise TrimlineError(
                f"{missing[0]} is not to be seen from {socket.gethostname()}.", "Put --output on storage that all nodes share."
            )
        time.sleep(0.5)


def _run(kind: type[LaneRun], task: Task, events: Events) -> LaneRun:
    run = kind(checked_recipe(task.recipe), RunOptions(**task.options), Path(task.output), events, "trimline sweep")
    run.done = dict(task.done)
    return run


def _new(run: LaneRun, task: Task) -> Done:
    """What the stage made, and what took another's place: a later round towards a target."""
    return {name: made for name, made in run.done.items() if name not in task.done or task.done[name].key != made.key}


__all__ = ["Done", "LaneRun", "Task", "done_of", "foresee", "perform", "record_of"]
