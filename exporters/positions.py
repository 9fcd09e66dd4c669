"""How many positions an export promises: those of the model, up to a bound beyond which nobody has made one."""

from __future__ import annotations

from pipeline.common.events import Events

# Rotary tables of as many positions are 0.5 GB for heads of 128 channels. A config that says more means "without an end".
MOST_POSITIONS = 2**20


def promised(stated: int) -> int:
    """Positions that an export of a model promises whose config states ``stated``."""
    return min(stated, MOST_POSITIONS)


def say_bound(stated: int, events: Events) -> None:
    """Notes where the bound is what counts."""
    if stated > MOST_POSITIONS:
        events.note(f"the config states {stated:,} positions; an export promises at most {MOST_POSITIONS:,}")
