"""The page of a sweep: one file that needs nothing else, in the look of a run's report."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import trimline.reporting
from trimline.reporting import formats
from trimline.reporting.page import script_json
from trimline.reporting.tasks import difference, figure
from trimline.sweeps.data import PointRow, SweepData
from trimline.sweeps.front import RULE
from trimline.sweeps.headline import doubts, headline, knee_sentence
from trimline.sweeps.plots import front_figure, widths_figure
from trimline.sweeps.tables import axis_name, columns, failures_table, label, lines, task_name


def render_sweep(data: SweepData) -> str:
    """The whole page; the same data gives the same text. Everything from the data is escaped."""
    chosen = data.fronts[0].knee if data.fronts and data.fronts[0].knee else data.dense.name
    return (
        _environment()
        .get_template("sweep.html.jinja")
        .render(
            data=data,
            headline=headline(data),
            rule=RULE,
            doubts=doubts(data),
            axes=[(axis_name(front), knee_sentence(data, front)) for front in data.fronts],
            columns=columns(data),
            lines=list(lines(data)),
            formulas=[(column.title, column.formula) for column in columns(data) if column.formula],
            failures=failures_table(data),
            chosen=chosen,
            figures=script_json(json.dumps([json.loads(front_figure(data, front).to_json()) for front in data.fronts])),
            widths=script_json(widths_figure(data, data.dense).to_json()),
            points=script_json(json.dumps({row.name: _shown(data, row) for row in data.models})),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _shown(data: SweepData, row: PointRow) -> dict[str, Any]:
    """What the page says of the point that is selected."""
    facts = [("Perplexity", f"{formats.perplexity(row.perplexity)} {formats.interval(row.perplexity)}".rstrip())]
    for front in data.fronts:
        speed = row.speed(front.axis)
        if speed:
            gain = f"{formats.ratio(speed.speedup.value)} {formats.interval(speed.speedup)}, " if speed.speedup else ""
            verdict = f", {speed.verdict}" if speed.verdict else ""
            facts.append((axis_name(front), f"{gain}{formats.duration(speed.latency)}{verdict}"))
    facts += [(task_name(task), f"{figure(task.pruned).whole}; against dense {difference(task).whole}") for task in row.tasks]
    facts += [
        ("Parameters", f"{row.parameters:,}" if row.parameters else formats.NONE),
        ("Decoder linear parameters", f"{row.decoder_parameters:,}" if row.decoder_parameters else formats.NONE),
        ("Checkpoint", f"{row.checkpoint} ({formats.size(row.checkpoint_bytes)})"),
    ]
    blocks = row.blocks or data.dense.blocks
    recipe = f"points/{row.name}/recipe.yaml" if row.name != data.dense.name else ""
    return {
        "label": label(data, row),
        "facts": facts,
        "recipe": recipe,
        "ffn": [block.ffn for block in blocks],
        "kv_groups": [block.kv_groups for block in blocks],
    }


@cache
def _environment() -> Environment:
    places = [Path(__file__).parent, Path(str(trimline.reporting.__file__)).parent]
    return Environment(loader=FileSystemLoader(places), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
