"""Events on a terminal: a bar for what is being done and for how long, one line for each stage that is done.

Where the output is no terminal, a line now and then takes the place of the bar.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.common.events import Event

SILENCE = 30.0  # seconds after which a log is told where a stage is


class TerminalEvents:
    """A subscriber; use it as a context manager so that the bars are cleared at the end.

    Args:
        console: to print to.
        silence: seconds between two lines that say where a stage is, where there are no bars.
    """

    def __init__(self, console: Console, silence: float = SILENCE) -> None:
        self._console, self._silence = console, silence
        self._now: Event | None = None  # the stage that runs, and how far it is
        self._since = 0.0
        self._ended = threading.Event()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stage: TaskID | None = None
        self._part: TaskID | None = None

    def __enter__(self) -> TerminalEvents:
        self._progress.start()
        if not self._console.is_terminal:
            threading.Thread(target=self._tell, name="where it is", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._clear()
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event.kind:
            case "stage_started":
                self._clear()
                self._is_at(event)
                self._stage = self._progress.add_task(event.stage, total=None)
            case "progress":
                self._is_at(event)
                self._advance(event)
            case "stage_finished":
                self._clear()
                self._line("✓", "green", event.stage, event.text)
            case "stage_skipped":
                self._line("=", "cyan", event.stage, event.text)
            case "gate":
                self._line("  ✓", "green", "gate", event.text)
            case "note":
                self._line("  ·", "dim", "", event.text)

    def _advance(self, event: Event) -> None:
        if self._part is None:
            self._part = self._progress.add_task("", total=event.total)
        self._progress.update(self._part, description=f"  {event.text}", completed=event.done, total=event.total)
        if event.done >= event.total:
            self._progress.remove_task(self._part)
            self._part = None

    def _is_at(self, event: Event) -> None:
        if self._now is None:
            self._since = time.monotonic()
        self._now = event

    def _tell(self) -> None:
        """Says where the stage is; of a thread, since a stage may compute for minutes without an event."""
        while not self._ended.wait(self._silence):
            if (now := self._now) is not None:
                how_far = f"{now.text}: {now.done} of {now.total}, " if now.kind == "progress" else ""
                self._line("  …", "dim", now.stage, f"{how_far}{time.monotonic() - self._since:.0f} s so far")

    def _line(self, mark: str, style: str, name: str, text: str) -> None:
        # Text, not markup: names and messages may hold brackets.
        self._console.print(Text.assemble((f"{mark} ", style), (f"{name}  " if name else ""), (text, "dim")), soft_wrap=True)

    def _clear(self) -> None:
        for task in (self._part, self._stage):
            if task is not None:
                self._progress.remove_task(task)
        self._stage = self._part = self._now = None
