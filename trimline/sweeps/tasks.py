"""One stage of one point as a task of plain values, which any process that sees the sweep's folder can do."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine.environment import versions
from pipeline.artefacts.artefact import WORK, Artefact, expected, is_whole
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT
from trimline.recipe import Recipe, checked_recipe
from trimline.reporting.data import Role
from trimline.stages.graph import DENSE, Run, Stage

Done = dict[str, Artefact]


class LaneRun(Run):
    """A run that others share the store with, and what a sweep asks of its lanes."""

    def _forget_states(self) -> None:
        shutil.rmtree(self.store / f"{WORK}{self.done['recover'].folder.name}", ignore_errors=True)

    def timed(self, lane: Role) -> tuple[str, Path]:
        """Key and folder of what the benchmark opens."""
        return self.done[self._timed_stage(lane)].key, self._timed(lane)

    def perplexity(self, lane: Role) -> dict[str, Any]:
        """What was evaluated, in the form that is timed."""
        return dict(read_json(self._evaluation(lane) / RESULT))

    def checkpoint(self, lane: Role) -> Path:
        """The folder with the lane's weights."""
        return self._checkpoint(lane)

    def onnx(self, lane: Role) -> Path:
        """The exported folder."""
        return self._folder("export", lane)

    @property
    def plan(self) -> Path:
        """Folder of the plan."""
        return self._folder("prune")

    @property
    def texts_folder(self) -> Path:
        """Folder of the two texts."""
        return self._folder("text")


class _Foreseen(LaneRun):
    """Finds out what a stage would make, and makes nothing."""

    def _make(self, stage: str, depends: dict[str, Any], code: str, work: Any, lane: str = "") -> None:
        found = expected(self.store, stage, depends | {"code": code, "libraries": versions()})
        self.done[f"{stage} {lane}".strip()] = found

    def _forget_states(self) -> None:
        """Nothing was made, so nothing is over."""


@dataclass(frozen=True)
class Task:
    """A stage to do.

    Attributes:
        recipe: plain values of the whole recipe.
        options: of ``RunOptions``, every setting given, so that a key is the same on every machine.
        output: the sweep's folder.
        stage: what to do.
        done: what was made before, by stage and lane.
        shards: parts that calibration windows are measured in.
    """

    recipe: dict[str, Any]
    options: dict[str, Any]
    output: str
    stage: Stage
    done: Done
    shards: int = 1

    @classmethod
    def of(cls, recipe: Recipe, options: RunOptions, output: Path, stage: Stage, done: Mapping[str, Artefact], shards: int) -> Task:
        return cls(recipe.model_dump(mode="json"), options.as_record(), str(output), stage, dict(done), shards)

    @property
    def title(self) -> str:
        """For people."""
        return " ".join(self.stage)

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        done = {name: asdict(artefact) | {"folder": str(artefact.folder)} for name, artefact in self.done.items()}
        return {**vars(self), "stage": list(self.stage), "done": done}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Task:
        """What ``as_record`` gave."""
        done = {name: Artefact(**fields | {"folder": Path(fields["folder"])}) for name, fields in record["done"].items()}
        return cls(**{**record, "stage": tuple(record["stage"]), "done": done})


def foresee(task: Task) -> Done:
    """What the task would make, made or not; empty where the stage only checks, or has nothing to do for this recipe.

    Raises:
        TrimlineError: a check fails.
    """
    run = _run(_Foreseen, task, Events())
    run.do(task.stage)
    return _new(run, task)


def perform(task: Task, events: Events, keys: Mapping[str, str] | None = None, patience: float = 0.0) -> Done:
    """Does the stage, or finds that it was done; returns what is new.

    Args:
        task: the stage.
        events: progress.
        keys: of what whoever asked foresees, by stage and lane.
        patience: seconds to wait for what was made before to be seen from here.

    Raises:
        TrimlineError: the stage failed, the folder is not to be seen from here, or this machine would make something else.
    """
    _demand_seen(task, time.monotonic() + patience)
    if keys is not None and (own := {name: artefact.key for name, artefact in foresee(task).items()}) != keys:
        raise TrimlineError(
            f"{socket.gethostname()} would make another {', '.join(own)} than the machine that asked: its code or libraries differ.",
            "Install the same Trimline and the same versions of its libraries on all nodes.",
        )
    run = _run(LaneRun, task, events)
    run.do(task.stage)
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
    run.done, run.shards = dict(task.done), task.shards
    return run


def _new(run: LaneRun, task: Task) -> Done:
    """What the stage made, and what took another's place: a later round towards a target."""
    return {name: made for name, made in run.done.items() if name not in task.done or task.done[name].key != made.key}


__all__ = ["DENSE", "Done", "LaneRun", "Task", "foresee", "perform"]
