"""The shape profiles: what shapes the consumer of a result accepts."""

from __future__ import annotations

from enum import StrEnum


class Profile(StrEnum):
    """What shapes the consumer of the result accepts; see docs/shape-profiles.md."""

    UNIFORM = "uniform"
    DECILM = "decilm"
    FREE = "free"
