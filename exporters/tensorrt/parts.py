"""What a call of an engine is made of, told apart as trtexec does: by events that the GPU itself marks on the stream.

An event costs the stream next to nothing and waits for nothing; how far two lie apart is asked when the calls are over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

H2D, COMPUTE, D2H, ENQUEUE = "h2d", "compute", "d2h", "enqueue"
# What trtexec's figures depend on too, as they are here.
SETTINGS = {
    "cuda_graphs": False,
    "spin_wait": "as CUDA chooses",
    "data_transfers": "token ids in, logits of the last position out; masks and positions are made, and the cache stays, on the GPU",
}


@dataclass
class _Call:
    enqueue: float = 0.0
    events: dict[str, tuple[Any, Any]] = field(default_factory=dict)


class PartTimer:
    """Times the parts of calls on one CUDA stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._calls: list[_Call] = []

    def begin(self) -> None:
        """The parts that follow are the next call's."""
        self._calls.append(_Call())

    @contextmanager
    def on_gpu(self, name: str) -> Iterator[None]:
        """What is put on the stream meanwhile is that part: the GPU's seconds, not the processor's."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self._stream)
        yield
        end.record(self._stream)
        self._calls[-1].events[name] = (start, end)

    @contextmanager
    def on_processor(self) -> Iterator[None]:
        """What the processor does meanwhile is the enqueueing."""
        start = time.perf_counter()
        yield
        self._calls[-1].enqueue = time.perf_counter() - start

    def forget(self) -> None:
        """Starts anew; what was not taken is gone."""
        self._calls = []

    def take(self) -> dict[str, list[float]]:
        """Seconds of every call that has ended since this was last asked, by part; empty where there was none."""
        calls, self._calls = self._calls, []
        found: dict[str, list[float]] = {}
        for call in calls:
            found.setdefault(ENQUEUE, []).append(call.enqueue)
            for name, (start, end) in call.events.items():
                found.setdefault(name, []).append(start.elapsed_time(end) / 1e3)  # it counts milliseconds
        return found
