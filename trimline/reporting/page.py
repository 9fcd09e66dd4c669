"""The HTML report: one file that needs nothing else, in light and dark, on a desk and on a phone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trimline.reporting.content import Code, Note, Plot, Section, Table
from trimline.reporting.data import ReportData
from trimline.reporting.headline import all_warnings, headline, tiles
from trimline.reporting.plots import figure
from trimline.reporting.sections import sections


def render_html(data: ReportData) -> str:
    """The whole page; the same data gives the same text. Everything from the data is escaped."""
    parts = sections(data)
    plots = {item.key: script_json(figure(item.key, data).to_json()) for item in plots_of(parts)}
    page = templates().get_template("report.html.jinja")
    return page.render(
        data=data,
        headline=headline(data),
        warnings=all_warnings(data),
        tiles=tiles(data),
        sections=parts,
        plots=plots,
        plotly=Markup(get_plotlyjs()) if plots else "",
    )


def script_json(text: str) -> Markup:
    """JSON that may stand inside a ``<script>``: no character in it can end the element."""
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def plots_of(parts: tuple[Section, ...]) -> list[Plot]:
    """Where plots stand, in reading order."""
    return [item for section in parts for item in section.items if isinstance(item, Plot)]


def _kind(item: Any) -> str:
    return {Table: "table", Note: "note", Code: "code", Plot: "plot"}[type(item)]


@cache
def templates() -> Environment:
    """The templates beside this file, whose values are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = _kind
    return environment
