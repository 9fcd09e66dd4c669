"""The report: one dataclass in, a self-contained page, Markdown and a terminal table out."""

from __future__ import annotations

from pathlib import Path

from deploy.folder import HTML, MARKDOWN, REPORT
from trimline.reporting.data import (
    BlockRow,
    ByText,
    ConsumerRow,
    ExpertCurve,
    ExpertPoint,
    GateRow,
    Measure,
    ModelRow,
    Recovery,
    Removed,
    ReportData,
    RoutedRow,
    SpeedPoint,
    StageTime,
    TextRow,
    WorkloadRow,
)
from trimline.reporting.headline import headline
from trimline.reporting.markdown import render_markdown
from trimline.reporting.page import render_html
from trimline.reporting.terminal import render_terminal

__all__ = [
    "REPORT",
    "HTML",
    "MARKDOWN",
    "BlockRow",
    "ByText",
    "ConsumerRow",
    "ExpertCurve",
    "ExpertPoint",
    "GateRow",
    "Measure",
    "ModelRow",
    "Recovery",
    "Removed",
    "ReportData",
    "RoutedRow",
    "SpeedPoint",
    "StageTime",
    "TextRow",
    "WorkloadRow",
    "headline",
    "render_html",
    "render_markdown",
    "render_terminal",
    "write_report",
]


def write_report(data: ReportData, out: Path) -> None:
    """Writes report.json, report.html and report.md into ``out``."""
    data.write(out / REPORT)
    (out / HTML).write_text(render_html(data), encoding="utf-8", newline="\n")
    (out / MARKDOWN).write_text(render_markdown(data), encoding="utf-8", newline="\n")
