"""Searched sizes beside a method's own, and a linear map beside nothing in place of blocks: ``python -m benchmarks.studies.search``.

Every row is a step, decided and then read on the live model with its zeros; that the rebuilt model computes the same is what the
rebuild gate shows. Rows of one method and spaces share what they measure first. What is there already is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.machine.environment import commit, processor_model
from benchmarks.studies.pages import fill
from benchmarks.studies.search.rows import ROWS, Stated, recipe_of
from benchmarks.studies.search.table import table
from benchmarks.studies.systems.measure import Setting, prepare
from pipeline.artefacts.artefact import digest
from pipeline.calibrate.measurements import Measurements
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import perplexity_record, window_losses
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_tokenizer
from pipeline.prune.allocation.budget import removed_in_every_definition
from pipeline.prune.measure import measured_part
from pipeline.prune.opening import opened
from pipeline.prune.stage import plans
from pipeline.prune.steps import resolve_steps
from pipeline.sources.folder import EVALUATION
from pipeline.sources.recipe import CalibrationWindows, TextSlice, TextSource
from pipeline.sources.windows import consecutive_windows

QUIET = Events()


def measured_row(step: Stated | None, setting: Setting) -> dict[str, Any]:
    """A step's result; of the dense model without one."""
    read = setting.evaluation
    text = (setting.texts / EVALUATION).read_text(encoding="utf-8")
    windows = consecutive_windows(load_tokenizer(setting.source), text, read.windows, read.window)
    model, tokens = opened(setting.source, setting.texts, setting.calibration, setting.options)
    found: dict[str, Any] = {"step": dict(step) if step else None}
    if step:
        recipe = recipe_of(step, setting.calibration)
        resolved = replace(resolve_steps(recipe)[0], work=setting.work)
        known = setting.work / f"measured-{digest([setting.identity, measured_part(recipe, model.geometry)])[:12]}"
        before = time.process_time()
        if not (known / "cost.json").exists():
            known.mkdir(exist_ok=True)
            resolved.measure(model, tokens, QUIET).write(known)
            write_json(known / "cost.json", {"processor": time.process_time() - before})
        before = time.process_time()
        *_, last = plans(model, tokens, [resolved], QUIET, Measurements.read(known))
        plan = last()
        cost = {"measure": read_json(known / "cost.json")["processor"], "decide": time.process_time() - before}
        removed = removed_in_every_definition(Checkpoint(setting.source).geometry, model.current)
        found |= {"processor_seconds": cost, "removed": removed, "facts": _facts(plan.steps[-1].facts)}
    return found | perplexity_record(window_losses(model.model, windows, QUIET))


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("search", "maps") if name in facts}


def main(
    calibration: Annotated[str, typer.Option(help="Text.")],
    evaluation: Annotated[str, typer.Option(help="Another text.")],
    model: Annotated[str, typer.Option(help="'default', a checkpoint folder or a hub id.")] = "default",
    work: Annotated[Path, typer.Option(help="Folder for models and statistics, which can go when the command is done.")] = Path(
        "runs/search"
    ),
    records: Annotated[Path, typer.Option(help="Folder for what was measured.")] = Path("benchmarks/studies/measured/search"),
    only: Annotated[list[str] | None, typer.Option(help="Only these rows, by name.")] = None,
    windows: Annotated[int, typer.Option(help="Of the calibration text.")] = 32,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    evaluation_windows: Annotated[int, typer.Option(help="Of the evaluation text.")] = 24,
    evaluation_window: Annotated[int, typer.Option(help="Tokens of each.")] = 1024,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    measure: Annotated[bool, typer.Option(help="Measure rows that are not there; without, what is there is shown.")] = True,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at searched.")] = None,
) -> None:
    """Measure rows, keep them, and print their table."""
    text = TextSlice(calibration=TextSource(source=calibration), evaluation=TextSource(source=evaluation))
    drawn = CalibrationWindows(windows=windows, window=window)
    read = EvaluateSlice(windows=evaluation_windows, window=evaluation_window)
    try:
        if measure:
            setting = prepare(model, text, drawn, read, RunOptions(dtype="float32", threads=threads), work, records)
            torch.set_num_threads(threads)
            made = {"commit": commit(), "processor": processor_model(), "threads": threads}  # of the code as it was loaded
            for name, step in ROWS.items():
                if (records / f"{name}.json").exists() or (only and name not in only):
                    continue
                typer.echo(f"{name} …", err=True)
                how = {"calibration": [windows, window], "evaluation": [evaluation_windows, evaluation_window]}
                record = {"name": name} | how | measured_row(step, setting) | made
                write_json(records / f"{name}.json", record)
                typer.echo(f"    perplexity {record['perplexity']:.2f}", err=True)
        shown = table({name: read_json(records / f"{name}.json") for name in ROWS if (records / f"{name}.json").exists()})
        typer.echo(shown)
        if page is not None:
            fill(page, "searched", shown)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
