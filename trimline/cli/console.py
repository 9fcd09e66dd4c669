"""Events on a terminal: a bar for what is being done and for how long, one line for each stage that is done."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.common.events import Event


class TerminalEvents:
    """A subscriber; use it as a context manager so that the bars are cleared at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clear()
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event.kind:
            case "stage_started":
                self._clear()
                self._stage = self._progress.add_task(event.stage, total=None)
            case "progress":
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

    def _line(self, mark: str, style: str, name: str, text: str) -> None:
        # Text, not markup: names and messages may hold brackets.
        self._console.print(Text.assemble((f"{mark} ", style), (f"{name}  " if name else ""), (text, "dim")), soft_wrap=True)

    def _clear(self) -> None:
        for task in (self._part, self._stage):
            if task is not None:
                self._progress.remove_task(task)
        self._stage = self._part = None
