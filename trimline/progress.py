"""Progress of the Python API in a notebook: one output per cell, drawn anew as events come.

rich's bars need ipywidgets there and show a warning without it. What every kernel can do is to replace an output of its own.
Outside a notebook nothing is shown.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from pipeline.common.events import Event, Events

PAUSE = 0.1  # seconds between two drawings of a bar: each is a message to the reader's browser


class NotebookProgress:
    """A subscriber that draws in the cell that runs; it knows by itself whether there is one."""

    def __init__(self) -> None:
        self._handle: Any = None  # of the output that is drawn anew; None until a cell has one
        self._shell: Any = None
        self._lines: list[str] = []
        self._now: Event | None = None  # what is being done, and how far it is
        self._since = self._drawn = 0.0

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        if self._handle is None and not self._begins():
            return
        if (line := _line(event)) is not None:
            self._lines.append(line)
        if event.kind == "stage_started" or (event.kind == "progress" and not event.stage and not event.done):
            self._since = time.monotonic()
        self._now = _what_goes_on(event) if event.kind not in ("gate", "note") else self._now
        if event.kind != "progress" or event.done in (0, event.total) or time.monotonic() - self._drawn >= PAUSE:
            self._draw()

    def _begins(self) -> bool:
        """Takes the cell that runs, if this is a kernel's process."""
        shell = kernel_shell()
        if shell is None:
            return False
        from IPython.display import display

        self._lines, self._now, self._since, self._shell = [], None, time.monotonic(), shell
        self._handle = display(self._bundle(), raw=True, display_id=True)
        shell.events.register("post_run_cell", self._ends)
        return True

    def _ends(self, ran: Any) -> None:
        """The cell has ended: no bar goes on moving, and the next cell gets an output of its own."""
        self._shell.events.unregister("post_run_cell", self._ends)
        if self._now is not None and not ran.success:
            self._lines.append(f"✗ {self._name()}  not finished")
        self._now = None
        self._draw()
        self._handle = None

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        lines, bar = list(self._lines), ""
        if (now := self._now) is not None:
            far = f"{now.done:,} of {now.total:,}, " if now.kind == "progress" else ""
            text = f"{self._name()}  {far}{self._drawn - self._since:.0f} s"
            bar = f"<progress{f' value={now.done} max={now.total}' if far else ''}></progress> {escape(text)}"
            lines.append(f"… {text}")
        page = "\n".join((*map(escape, self._lines), bar))
        return {"text/plain": "\n".join(lines), "text/html": f'<pre style="white-space: pre-wrap">{page}</pre>'}

    def _name(self) -> str:
        assert self._now is not None
        return "  ".join(part for part in (self._now.stage, self._now.text) if part)


def _line(event: Event) -> str | None:
    """What stays of an event when the cell has ended."""
    if event.kind in ("stage_finished", "stage_skipped"):
        return f"{'✓' if event.kind == 'stage_finished' else '='} {event.stage}  {event.text}"
    if event.kind in ("gate", "note"):
        return f"  ✓ gate  {event.text}" if event.kind == "gate" else f"  · {event.text}"
    if event.kind == "progress" and event.done >= event.total and not event.stage:
        return f"✓ {event.text}  {event.total:,} of {event.total:,}"  # of a verb by itself, no event tells the end
    return None


def _what_goes_on(event: Event) -> Event | None:
    """What is being done after an event; a part that is done leaves its stage."""
    if event.kind == "progress" and event.done >= event.total:
        return Event("stage_started", event.stage) if event.stage else None
    return event if event.kind in ("stage_started", "progress") else None


def kernel_shell() -> Any:
    """IPython's shell where it is a notebook's kernel; None elsewhere. IPython is not imported for that: there it is already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell if hasattr(shell, "kernel") else None


IN_NOTEBOOKS = Events(NotebookProgress())  # what verbs of the Python API tell where the caller names nobody
