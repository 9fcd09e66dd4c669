"""Which executor a sweep runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from trimline.sweeps.schedule import Executor, LocalExecutor


@contextmanager
def executor_of(ray: str | None, options: RunOptions, events: Events, output: Path) -> Iterator[Executor]:
    """This process, or a Ray cluster where an address is given; Ray is imported only then.

    Raises:
        TrimlineError: Ray is not installed, or nothing answers at the address.
    """
    if ray is None:
        yield LocalExecutor(events)
        return
    from trimline.sweeps.ray_executor import connected

    with connected(ray, options, events, output / "store") as executor:
        yield executor
