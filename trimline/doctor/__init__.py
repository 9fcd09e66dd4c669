"""``trimline doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.common.driver import cuda_devices
from trimline.doctor.finding import Finding, State
from trimline.doctor.machine import examine_machine
from trimline.doctor.packages import examine_packages
from trimline.doctor.providers import examine_providers

__all__ = ["Finding", "examine", "render_findings"]

MARKS: dict[State, tuple[str, str]] = {"ok": ("ok", "green"), "warn": ("warning", "yellow"), "missing": ("absent", "dim")}


def examine(folder: Path | None = None) -> list[Finding]:
    """Looks at everything; ``folder`` is where results would be written (by default the current one)."""
    machine = examine_machine(folder or Path.cwd())
    return [*machine, *examine_packages(), *examine_providers(driver=bool(cuda_devices()))]


def render_findings(findings: list[Finding], console: Console) -> None:
    """Prints one row per finding, and how many need doing something about."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "State", "Found", "What to do"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        mark, style = MARKS[finding.state]
        table.add_row(Text(finding.name), Text(mark, style), Text(finding.value), Text(finding.advice))
    console.print(table)
    warnings = sum(finding.state == "warn" for finding in findings)
    console.print(Text(f"{warnings} to mend." if warnings else "Nothing to mend.", style="yellow" if warnings else "green"))
