"""What will run the result, as far as sizes are decided by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.prune.latency import LatencyTable

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes of a number


def stated_dtype(config: Mapping[str, Any]) -> str:
    """What ``config.json`` says that weights are; ``float32`` where it says nothing of these."""
    stated = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return stated if stated in WIDTHS else "float32"


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
