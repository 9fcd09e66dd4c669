"""Who does what when: every stage of every point once, whichever executor runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.artefacts.artefact import MEASURED, Artefact, is_whole
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from trimline.recipe import Recipe
from trimline.stages.names import Name
from trimline.stages.table import TIMED, row_of
from trimline.sweeps.tasks import Done, LaneRun, Task, foresee, perform

Outcome = Done | Exception


class Executor(Protocol):
    """Runs tasks, one or many at once."""

    def free(self) -> bool:
        """Whether another task can be taken on."""

    def start(self, number: int, task: Task, expects: Done) -> None:
        """Takes a task on; ``number`` names it."""

    def wait(self) -> tuple[int, Outcome]:
        """Number and outcome of a task that was taken on and has ended."""

    def alone(self, task: Task) -> Outcome:
        """Does a task that measures speed, where nothing else runs."""

    def time(self, spec: dict[str, Any]) -> dict[str, Any]:
        """``trimline.sweeps.timing.time_points`` where nothing else runs."""


class LocalExecutor:
    """One task after the other, in this process."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._ended: list[tuple[int, Outcome]] = []

    def free(self) -> bool:
        return not self._ended

    def start(self, number: int, task: Task, expects: Done) -> None:
        self._ended.append((number, _outcome(task, self._events)))

    def wait(self) -> tuple[int, Outcome]:
        return self._ended.pop()

    def alone(self, task: Task) -> Outcome:
        return _outcome(task, self._events)

    def time(self, spec: dict[str, Any]) -> dict[str, Any]:
        from trimline.sweeps.timing import time_points

        return time_points(spec, self._events)


@dataclass
class Lanes:
    """What is to be done of one recipe, and what was.

    Attributes:
        name: of the point.
        recipe: the whole recipe.
        done: by name.
        left: names of what is still to be made.
        failure: why the rest of them cannot be done.
        essential: nothing goes on without it.
    """

    name: str
    recipe: Recipe
    done: Done
    left: deque[Name] = field(default_factory=deque)
    failure: Exception | None = None
    essential: bool = False

    def as_run(self, options: RunOptions, output: Path) -> LaneRun:
        """What was done, to be asked about."""
        run = LaneRun(self.recipe, options, output, Events(), "trimline sweep")
        run.done = dict(self.done)
        return run


@dataclass
class _Running:
    """A task that was started, and the lanes that need what it makes."""

    expects: Done
    waiting: list[Lanes]


class Schedule:
    """Brings lanes to their ends. Two that need the same artefact get it from one task."""

    def __init__(self, executor: Executor, options: RunOptions, output: Path, events: Events) -> None:
        self._executor, self._options, self._output, self._events = executor, options, output, events
        self._running: dict[int, _Running] = {}
        self._timing: deque[tuple[Lanes, Task]] = deque()
        self._numbers = 0

    def run(self, lanes: Iterable[Lanes]) -> None:
        """Does all that can be done; what fails is written down in its lanes, and the others go on.

        Raises:
            OSError: the disk is full, say: what stops one stops all.
            Exception: why essential lanes failed.
        """
        ready = deque(lanes)
        while ready or self._running or self._timing:
            while ready and self._executor.free():
                self._advance(ready.popleft(), ready)
            if self._running:
                number, outcome = self._executor.wait()
                self._settle(self._running.pop(number).waiting, outcome, ready)
            elif self._timing:
                timed, task = self._timing.popleft()
                self._settle([timed], self._executor.alone(task), ready)

    def _advance(self, lanes: Lanes, ready: deque[Lanes]) -> None:
        """The next stage of one point: known, waited for, begun, or put off until nothing else runs."""
        if not lanes.left:
            return
        task = Task.of(lanes.recipe, self._options, self._output, lanes.left[0], lanes.done)
        if task.job.stage in TIMED:
            self._timing.append((lanes, task))
            return
        try:
            expects = foresee(task)
        except OSError:
            raise
        except Exception as error:
            self._fail(lanes, error)
            return
        same = next((running for running in self._running.values() if expects and running.expects == expects), None)
        if same:
            same.waiting.append(lanes)
        elif all(map(is_whole, expects.values())):
            self._take(lanes, {name: _measured(artefact) for name, artefact in expects.items()}, ready)
        else:
            self._numbers += 1
            self._running[self._numbers] = _Running(expects, [lanes])
            self._executor.start(self._numbers, task, expects)

    def _settle(self, waiting: list[Lanes], outcome: Outcome, ready: deque[Lanes]) -> None:
        if isinstance(outcome, OSError):
            raise outcome
        for lanes in reversed(waiting):  # the first of them goes on first
            if isinstance(outcome, Exception):
                self._fail(lanes, outcome)
            else:
                self._take(lanes, outcome, ready)

    def _take(self, lanes: Lanes, new: Done, ready: deque[Lanes]) -> None:
        lanes.left.popleft()
        lanes.done |= new
        ready.appendleft(lanes)

    def _fail(self, lanes: Lanes, error: Exception) -> None:
        lanes.failure = error
        if lanes.essential:
            raise error
        self._events.note(f"{lanes.name} failed at {row_of(lanes.left[0]).title(lanes.left[0])}: {error}")


def _outcome(task: Task, events: Events) -> Outcome:
    """A failure of one point is its own affair; what stops the process is not caught."""
    try:
        return perform(task, events)
    except Exception as error:
        return error


def _measured(artefact: Artefact) -> Artefact:
    """One that was there already, with the time that it took."""
    seconds = float(read_json(artefact.folder / MEASURED)["seconds"])
    return Artefact(artefact.stage, artefact.key, artefact.folder, seconds, skipped=True)
