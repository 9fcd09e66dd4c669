"""A sweep's stages as tasks of a Ray cluster; artefacts go through storage that all its nodes share, by their hashes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from trimline.own_packages import HOME, same
from trimline.sweeps.remote import LOCK, Reply, problem_of, stage_task, timing_task
from trimline.sweeps.schedule import Outcome
from trimline.sweeps.tasks import Done, Task, done_of

RETRIES = 5  # of a stage whose worker or node died
LOOK = 20.0  # seconds after which it is looked whether the cluster still has nodes
ANSWER = 10.0  # seconds that an address may take
TIMING = "timing"  # custom resource of the node to time on, where one has it
DEFAULT_PORT = 6379

Node = Mapping[str, Any]


class RayExecutor:
    """One Ray task per stage. A stage whose worker dies is begun again elsewhere; what it had finished is found there."""

    def __init__(self, options: RunOptions, events: Events) -> None:
        import ray

        self._options, self._events = options, events
        self._ray: Any = ray  # its stubs know no settings that are computed
        self._running: dict[Any, tuple[int, str]] = {}
        self._demand_room()
        self._gpus = {"num_gpus": 1} if options.device == "cuda" else {}
        self._stage = self._ray.remote(num_cpus=options.threads, max_retries=RETRIES, **self._gpus)(begun_by_ours(stage_task))

    def free(self) -> bool:
        """Ray keeps the queue."""
        return True

    def start(self, number: int, task: Task, expects: Done) -> None:
        reference = self._stage.remote(task.as_record(), {str(name): artefact.key for name, artefact in expects.items()})
        self._running[reference] = number, task.title

    def wait(self) -> tuple[int, Outcome]:
        ended: list[Any] = []
        while not ended:
            ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=LOOK)
            if not ended:
                self._demand_room()
        number, title = self._running.pop(ended[0])
        outcome = self._outcome(ended[0], title)
        self._events.note(f"{title} {'failed' if isinstance(outcome, Exception) else 'done'}")
        return number, outcome

    def alone(self, task: Task) -> Outcome:
        try:
            reply = self._on_one_node(stage_task, task.as_record(), None)
        except TrimlineError as error:
            return error
        return self._read(reply)

    def time(self, spec: dict[str, Any]) -> dict[str, Any]:
        reply = self._on_one_node(timing_task, spec)
        wrong = problem_of(reply)
        if wrong is not None:
            raise wrong
        return dict(reply["timings"])

    def _on_one_node(self, work: Callable[..., Reply], *given: Any) -> Reply:
        """On a node that gives all its processors to it, so that nothing else runs there; on another if that one dies."""
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, TaskUnschedulableError, WorkerCrashedError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for _ in range(RETRIES + 1):
            node = timing_node(self._nodes(), self._ray.get_runtime_context().get_node_id())
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            self._events.note(f"timing on {node['NodeManagerHostname']}, alone")
            whole = self._ray.remote(num_cpus=node["Resources"]["CPU"], scheduling_strategy=place, max_retries=0, **self._gpus)
            try:
                return dict(self._ray.get(whole(begun_by_ours(work)).remote(*given)))
            except (NodeDiedError, OutOfMemoryError, TaskUnschedulableError, WorkerCrashedError):
                self._events.note(f"{node['NodeManagerHostname']} died while it timed")
            except RayError as error:
                raise TrimlineError(
                    f"Ray gave up on timing: {_first_line(error)}", "Look at why; the same command goes on from there."
                ) from None
        raise TrimlineError(f"{RETRIES + 1} nodes or workers died while they timed.", "Look at why; the same command goes on from there.")

    def cancel(self) -> None:
        """Ends what still runs."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, title: str) -> Outcome:
        from ray.exceptions import RayError

        try:
            reply = self._ray.get(reference)
        except RayError as error:
            return TrimlineError(f"Ray gave up on {title}: {_first_line(error)}", "Look at why its workers die; the same command goes on.")
        return self._read(reply)

    def _read(self, reply: Reply) -> Outcome:
        wrong = problem_of(reply)
        if wrong is not None:
            return wrong
        return done_of(reply["done"])

    def _nodes(self) -> list[Node]:
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= self._options.threads]

    def _demand_room(self) -> None:
        if not self._nodes():
            raise TrimlineError(
                f"No node of the Ray cluster is alive with {self._options.threads} processors.", "Give fewer --threads, or start a node."
            )


def begun_by_ours(work: Callable[..., Reply]) -> Callable[..., Reply]:
    """A task that does ``work``, a function of this package, with our own packages.

    Ray puts the folder that the driver stands in first on its workers' path, and a ``benchmarks`` that lies there would be taken for ours.
    The task takes it off before it imports anything, which it can: Ray sends functions that are made in functions as they are, and
    not by the name of their module.
    """
    module, name = work.__module__, work.__name__
    drivers = (os.path.abspath(os.curdir), os.path.dirname(os.path.realpath(sys.argv[0])))
    folders = {folder for folder in drivers if not same(folder, HOME)}

    def task(*given: Any) -> Reply:
        import importlib
        import sys

        sys.path[:] = [folder for folder in sys.path if folder not in folders]
        reply: Reply = getattr(importlib.import_module(module), name)(*given)
        return reply

    task.__name__ = task.__qualname__ = name  # what Ray shows
    return task


def timing_node(nodes: list[Node], own: str) -> Node:
    """The node that has the resource ``timing``; else the one that this process is on; else the first by address.

    Raises:
        TrimlineError: there is none.
    """
    if not nodes:
        raise TrimlineError("The Ray cluster has no node left to time on.", "Start one; the same command goes on from there.")
    return min(nodes, key=lambda node: (TIMING not in node["Resources"], node["NodeID"] != own, node["NodeManagerAddress"], node["NodeID"]))


@contextmanager
def connected(address: str, options: RunOptions, events: Events, store: Path) -> Iterator[RayExecutor]:
    """An executor on the cluster at an address, such as ``10.0.0.1:6379``, ``ray://10.0.0.1:10001`` or ``auto``.

    Raises:
        TrimlineError: Ray is not installed, or nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default, which it warns about otherwise
    try:
        import ray
    except ImportError:
        raise TrimlineError("Ray is not installed.", "Run pip install 'trimline[ray]', or leave --ray out.") from None
    _demand_answer(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, _first_line(error)) from None
    try:
        executor = RayExecutor(options, events)
        try:
            yield executor
        finally:
            executor.cancel()
            for left in store.glob(f"{LOCK}*"):
                left.unlink(missing_ok=True)
    finally:
        ray.shutdown()


def _demand_answer(address: str) -> None:
    """Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise TrimlineError(f"{address!r} is no address of a Ray cluster.", f"Write HOST:PORT, such as 10.0.0.1:{DEFAULT_PORT}, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, why: str) -> TrimlineError:
    return TrimlineError(f"No Ray cluster answers at {address} ({why}).", "Start one with `ray start --head`, or leave --ray out.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
