"""What will run the result, as far as sizes are decided by it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.prune.latency import LatencyTable


@dataclass(frozen=True)
class Consumer:
    """What will run the result.

    Attributes:
        table: how long its shapes take there; a target of time needs it.
        weight_bytes, cache_bytes: of one number; None where the numbers of a precision have no one width.
    """

    table: LatencyTable | None = None
    weight_bytes: float | None = 4.0
    cache_bytes: float = 4.0
