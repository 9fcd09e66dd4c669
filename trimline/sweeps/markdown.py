"""A sweep as Markdown: the same tables without plots, readable as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.common.markdown import escape, fence
from trimline.reporting.markdown import table_lines
from trimline.sweeps.data import SweepData
from trimline.sweeps.front import RULE
from trimline.sweeps.headline import doubts, headline, knee_sentence
from trimline.sweeps.tables import failures_table, points_table


def render_sweep_markdown(data: SweepData) -> str:
    """GitHub-flavoured Markdown; the same data gives the same text. Markup in the data stays text."""
    return "\n".join(_lines(data)).rstrip("\n") + "\n"


def _lines(data: SweepData) -> Iterator[str]:
    yield from (f"# {escape(data.title)}", "", escape(headline(data)), "")
    if doubts(data):
        yield from (f"> **Warning:** {escape(doubts(data))}", "")
    for front in data.fronts[1:]:
        yield from (escape(knee_sentence(data, front)), "")
    yield from (f"The knee is {RULE}.", "")
    yield from (f"Dense model: {escape(data.model_source)}. Perplexity: {escape(data.evaluation)}. Timed in {escape(data.runtime)}.", "")
    yield from ("## Points", "", *table_lines(points_table(data)))
    failures = failures_table(data)
    if failures:
        yield from ("## Points that failed", "", *table_lines(failures))
    yield from ("## How it was made", "")
    for language, text in (("console", data.command), ("yaml", data.recipe.rstrip("\n"))):
        marks = fence(text)
        yield from (f"{marks}{language}", text, marks, "")
    yield from (f"- {escape(name)}: {escape(value)}" for name, value in data.environment.items())
