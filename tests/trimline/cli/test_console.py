"""What a log without bars says of a stage that takes long."""

from __future__ import annotations

import io
import time

from rich.console import Console

from pipeline.common.events import Events
from trimline.cli.console import TerminalEvents


def said(work, terminal: bool = False) -> str:
    """What stands on a console after ``work(events)``, with a line of where it is every 20 ms."""
    out = io.StringIO()
    with TerminalEvents(Console(file=out, force_terminal=terminal, width=200), silence=0.02) as shown:
        work(Events(shown))
    return out.getvalue()


def slow(events: Events) -> None:
    events.stage = "prune"
    events.emit("stage_started")
    with events.progress("measuring blocks", 30) as advance:
        advance(12)
        time.sleep(0.2)
    events.emit("stage_finished", "1.0 s")


def test_a_silent_stage_says_where_it_is():
    assert "  … prune  measuring blocks: 12 of 30, 0 s so far" in said(slow)


def test_a_stage_that_tells_nothing_is_named():
    def work(events: Events) -> None:
        events.stage = "build"
        events.emit("stage_started")
        time.sleep(0.2)

    assert "  … build  0 s so far" in said(work)


def test_a_verb_without_stages_says_it_too():
    def work(events: Events) -> None:
        with events.progress("windows", 4):
            time.sleep(0.2)

    assert "  … windows: 0 of 4, 0 s so far" in said(work)


def test_nothing_is_said_between_stages():
    def work(events: Events) -> None:
        slow(events)
        time.sleep(0.2)

    after = said(work).partition("✓ prune")[2]
    assert "…" not in after


def test_a_terminal_has_its_bar():
    assert "so far" not in said(slow, terminal=True)
