"""Which of how many processes this one is: of one, or of those that torchrun started."""

from __future__ import annotations

import os


def first_process() -> bool:
    """Whether this is the process that writes results."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
