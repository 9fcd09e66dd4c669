"""What a worker of a cluster does: plain values in, plain values out, since its process may run another day's code."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from filelock import FileLock

from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from trimline.sweeps.tasks import Done, Task, foresee, perform, record_of
from trimline.sweeps.timing import time_points

LOCK = ".lock-"
PATIENCE = 60.0  # seconds in which shared storage shows what another node wrote
Reply = dict[str, Any]


def stage_task(record: Mapping[str, Any], keys: Mapping[str, str] | None) -> Reply:
    """Does one stage.

    Args:
        record: ``Task.as_record()``.
        keys: of the artefacts that the driver foresees, by name; None for what it cannot, since it is timed.

    Returns:
        ``done``: as ``record_of`` gives it; or what went wrong, for ``problem_of``.
    """
    task = Task.from_record(record)
    try:
        with nullcontext() if keys is None else _held(task):
            done = perform(task, Events(), keys, PATIENCE)
    except Exception as error:
        return _problem(error)
    return {"done": record_of(done)}


def timing_task(spec: Mapping[str, Any]) -> Reply:
    """``time_points`` as a task: ``timings``, or what went wrong."""
    try:
        return {"timings": time_points(dict(spec), Events())}
    except Exception as error:
        return _problem(error)


def problem_of(reply: Mapping[str, Any]) -> Exception | None:
    """What went wrong, as the kind of error that it was."""
    match reply:
        case {"problem": problem, "remedy": remedy, "gate": gate}:
            return (GateError if gate else TrimlineError)(problem, remedy)
        case {"errno": number, "place": place}:
            return OSError(number, os.strerror(number), place)
        case {"wrong": wrong}:
            return RuntimeError(wrong)
    return None


def _problem(error: Exception) -> Reply:
    if isinstance(error, TrimlineError):
        return {"problem": error.problem, "remedy": error.remedy, "gate": isinstance(error, GateError)}
    if isinstance(error, OSError):
        return {"errno": error.errno or errno.EIO, "place": str(error.filename or "")}
    return {"wrong": f"{type(error).__name__}: {error}"}


@contextmanager
def _held(task: Task) -> Iterator[None]:
    """The places that the stage writes to: a node that was given up for lost may still be at work on them.

    The system lets go of a lock when its process dies, however it does.
    """
    made: Done = foresee(task)
    with ExitStack() as locks:
        for artefact in made.values():
            locks.enter_context(FileLock(artefact.folder.with_name(f"{LOCK}{artefact.folder.name}")))
        yield
