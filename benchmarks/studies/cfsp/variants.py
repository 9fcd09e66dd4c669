"""CFSP's options and Trimline's own method side by side: ``python -m benchmarks.studies.cfsp.variants MODEL --calibration FILE --evaluation FILE``.

Perplexity only, of the dense model with each plan applied as zeros and updates, which the rebuild gate proves equal to
the smaller checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.studies.pages import fill, markdown_table
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import perplexity_record, window_losses
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.plan import Plan
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import Budget, Pool, PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.rebuild.masked import apply_plan
from pipeline.sources.recipe import CalibrationWindows, TextSource
from pipeline.sources.text import load_text
from pipeline.sources.windows import consecutive_windows, draw_windows

REMOVE = (0.3, 0.5)  # of the FFN channels
VARIANTS: dict[str, dict[str, Any]] = {
    "published score, uniform": {"allocation": "uniform"},
    "published score, CFSP's allocation": {},
    "normalised score, CFSP's allocation": {"options": {"score": "normalised"}},
    "published score, CFSP's allocation, least squares": {"compensation": "least_squares"},
    "normalised score, CFSP's allocation, least squares": {"options": {"score": "normalised"}, "compensation": "least_squares"},
}
OURS = "Trimline on FFN channels, widths multiples of 64"
ALL = (*VARIANTS, OURS)


def step_of(variant: str, remove: float, geometry: Geometry) -> PruneStep:
    """The recipe step of a variant, or of ours, which is asked for as many of the decoder's parameters."""
    if variant != OURS:
        return PruneStep(budget={Space.FFN: Budget(remove=remove)}, **VARIANTS[variant])
    ffn = sum(geometry.block_parameters(BlockShape(shape.ffn, 0)) for shape in geometry.blocks) / geometry.decoder_parameters()
    return PruneStep(method="trimline", pooled=Pool(spaces=(Space.FFN,), remove=remove * ffn), round_to=64)


def perplexity_of(checkpoint: Checkpoint, plan: Plan | None, windows: torch.Tensor) -> dict[str, Any]:
    """Of the dense model, or of the dense model with a plan applied, in the checkpoint's dtype."""
    model = load_model(checkpoint.folder)
    if plan is not None:
        apply_plan(model, checkpoint, plan)
    return perplexity_record(window_losses(model, windows, Events()))


def compare(
    checkpoint: Checkpoint, calibration: torch.Tensor, evaluation: torch.Tensor, options: RunOptions, variants: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per variant and budget, the dense model first."""
    rows = [{"variant": "dense", "remove": 0.0, "seconds": None} | perplexity_of(checkpoint, None, evaluation)]
    for remove in REMOVE:
        for variant in variants:
            started = time.monotonic()
            model = ShrinkingModel(load_model(checkpoint.folder, dtype=options.resolved_dtype()), checkpoint)
            plan = make_plan(model, calibration, PruneSlice(steps=(step_of(variant, remove, checkpoint.geometry),)), Events())
            seconds = time.monotonic() - started
            rows.append({"variant": variant, "remove": remove, "seconds": seconds} | perplexity_of(checkpoint, plan, evaluation))
            typer.echo(f"{variant}, {remove:.0%}: {rows[-1]['perplexity']:.2f}", err=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Variants down, budgets across."""
    dense = rows[0]
    found = {(row["variant"], row["remove"]): f"{row['perplexity']:.1f} ± {row['standard_error']:.1f}" for row in rows}
    lines = [["dense", *[f"{dense['perplexity']:.1f} ± {dense['standard_error']:.1f}"] * len(REMOVE)]]
    lines += [[variant, *(found[variant, remove] for remove in REMOVE)] for variant in ALL if (variant, REMOVE[0]) in found]
    return markdown_table(["FFN channels removed", *(f"{remove:.0%}" for remove in REMOVE)], lines)


def main(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    calibration: Annotated[str, typer.Option(help="Text.")] = "default",
    evaluation: Annotated[str, typer.Option(help="Another text.")] = "default",
    windows: Annotated[int, typer.Option(help="Calibration windows of 512 tokens.")] = 32,
    ours_alone: Annotated[bool, typer.Option(help="Leave CFSP out.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the figures there, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at cfsp-table, unless CFSP is left out.")] = None,
) -> None:
    """Print perplexity of CFSP's options, and of Trimline, at 30 and 50 % of the FFN channels."""
    try:
        options, wanted = RunOptions(), EvaluateSlice(windows=12, window=1024)
        options.apply()
        tokenizer = load_tokenizer(model)
        text = load_text(TextSource(source=calibration), "calibration")
        drawn = draw_windows(tokenizer, text, CalibrationWindows(windows=windows, window=512))
        held_out = load_text(TextSource(source=evaluation), "evaluation")
        held_windows = consecutive_windows(tokenizer, held_out, wanted.windows, wanted.window)
        rows = compare(Checkpoint(model), drawn, held_windows, options, (OURS,) if ours_alone else ALL)
        typer.echo(table(rows))
        if output is not None:
            output.write_text(json.dumps({"rows": rows, "options": options.as_record()}, indent=2) + "\n", encoding="utf-8")
        if page is not None and not ours_alone:
            fill(page, "cfsp-table", table(rows))
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
