"""One thing that ``trimline doctor`` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        name: what was looked at.
        value: what is there.
        state: ``ok``; ``warn`` where something will go wrong or slowly; ``missing`` where something optional is not there.
        advice: what to do about it, empty where nothing needs doing.
    """

    name: str
    value: str
    state: State = "ok"
    advice: str = ""
