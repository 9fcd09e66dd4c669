"""``python -m benchmarks.studies.latency_table MODEL``: a latency table, and how far its predictions are from whole models.

The table is made of models of a few blocks, all alike. The check times whole models whose blocks differ, against the dense
one in interleaved rounds, and compares the speed-ups with those that the table predicts.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.latency.cut_models import shape_of
from benchmarks.latency.shapes import WHOLE, Form
from benchmarks.latency.stage import control_holds, latency_table, setting_of, time_shapes
from benchmarks.machine.environment import environment
from benchmarks.recipe import LEAST_ROUNDS, BenchmarkSlice
from benchmarks.runtimes.names import FORMS, ON_GPU
from benchmarks.studies.figures import DOCS, made
from benchmarks.studies.pages import fill, markdown_table
from benchmarks.timing.timing import DENSE
from exporters.recipe import BuildSlice, ExportSlice, Precision
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.artefacts.artefact import digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.prune.latency import LatencyTable, Times
from pipeline.sources.model import checkpoint_folder, source
from pipeline.sources.recipe import ModelSlice

BAR = 0.05  # of the mean error of predicted speed-ups
SHAPES = 6
TOGETHER = 2  # whole models per run, beside dense and dense again: each process holds one
QUIET = Events()


def uneven_shapes(geometry: Geometry, tile: int, count: int, seed: int = 0) -> dict[str, Geometry]:
    """Whole models whose blocks differ, drawn at random: from nearly dense to nearly half, some without whole sublayers.

    Args:
        geometry: the dense model.
        tile: FFN widths are multiples of it, most of them between those that the table was measured at.
        count: how many; every second one lacks sublayers in some blocks.
        seed: of the draw.
    """
    draw, block = random.Random(seed), geometry.blocks[0]
    tiles, found = max(1, block.ffn // tile), {}
    for number in range(count):
        least = 1 - 0.8 * (number + 1) / count
        sizes = []
        for place in range(len(geometry.blocks)):
            ffn = tile * max(1, round(tiles * draw.uniform(least, 1.0))) if block.ffn >= tile else block.ffn
            groups = max(1, round(block.kv_groups * draw.uniform(least, 1.0)))
            if number % 2 and place and draw.random() < 0.15:
                ffn, groups = draw.choice([(0, groups), (ffn, 0)])
            sizes.append(BlockShape(min(ffn, block.ffn), groups))
        found[f"uneven {number + 1}"] = geometry.with_blocks(tuple(sizes))
    return found


def check(source_: Path, table: LatencyTable, form: Form, tile: int, count: int, work: Path, events: Events = QUIET) -> dict[str, Any]:
    """Predicted and measured speed-ups of whole models; JSON-compatible.

    Raises:
        TrimlineError: a model cannot be exported or timed.
    """
    dense = Checkpoint(source_).geometry
    shapes = {DENSE: dense} | uneven_shapes(dense, tile, count)
    measured = time_shapes(source_, {name: shape_of(shape) for name, shape in shapes.items()}, form, work, events, TOGETHER)
    rows = []
    for entry in table.entries:
        seconds = measured["seconds"][entry.workload][entry.phase]
        whole = entry.times.whole(dense)
        for name, shape in shapes.items():
            if name != DENSE:
                predicted, real = whole / entry.times.whole(shape), seconds[DENSE] / seconds[name]
                row = {"workload": entry.workload, "phase": entry.phase, "shape": name, "predicted": predicted, "measured": real}
                rows.append(row | {"error": predicted / real - 1, "parameters": shape.decoder_parameters() / dense.decoder_parameters()})
    return measured | {"rows": rows, "control_holds": control_holds(measured)}


def errors(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Mean and largest relative error of predicted speed-ups, by workload and phase."""
    kinds = dict.fromkeys((row["workload"], row["phase"]) for row in rows)
    by_kind = {kind: [abs(row["error"]) for row in rows if (row["workload"], row["phase"]) == kind] for kind in kinds}
    return {kind: (sum(found) / len(found), max(found)) for kind, found in by_kind.items()}


def document(table: LatencyTable, checked: Mapping[str, Any] | None) -> str:
    """The table and its check, in Markdown."""
    parts = [_where(table.setting)]
    parts += [times_table(f"{entry.workload} {entry.phase}", entry.times) for entry in table.entries]
    if checked is not None:
        parts += [_check_table(checked["rows"]), _verdict(checked)]
    return "\n\n".join(parts)


def _where(setting: Mapping[str, Any]) -> str:
    machine = setting["machine"]
    cut = sorted(shape["blocks"] for name, shape in setting["shapes"].items() if name != WHOLE)
    return (
        f"Runtime {setting['runtime']}, {setting['precision']}, {machine['threads']} threads of {machine['processor']} "
        f"({', '.join(machine['flags'])}); {len(setting['shapes'])} shapes of {cut[0]} to {cut[-1]} blocks, alike."
    )


def times_table(title: str, times: Times) -> str:
    """What each part takes, in milliseconds."""
    milli = [f"{1e3 * seconds:.4f}" for seconds in (times.fixed, *times.attention[1:], *times.ffn[1:])]
    names = ["the rest", *(f"attention {n}" for n in range(1, len(times.attention))), *(f"FFN {width}" for width in times.widths[1:])]
    return f"{title}, ms of one block:\n\n" + markdown_table(names, [milli])


def _check_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["shape"],
            f"{row['parameters']:.0%}",
            f"{row['workload']} {row['phase']}",
            *(f"{row[key]:.3f}" for key in ("predicted", "measured")),
        ]
        + [f"{row['error']:+.1%}"]
        for row in rows
    ]
    return markdown_table(["whole model", "of the decoder", "timed", "predicted speed-up", "measured", "error"], cells)


def _verdict(checked: Mapping[str, Any]) -> str:
    lines = []
    for (workload, phase), (mean, largest) in errors(checked["rows"]).items():
        rounds, holds = checked["rounds"][workload][phase], checked["control_holds"]
        outcome = ("reached" if mean <= BAR else "missed") if holds and rounds >= LEAST_ROUNDS else "not resolved"
        lines.append(f"- {workload} {phase}: mean error {mean:.1%}, largest {largest:.1%}, over {rounds} rounds; bar {BAR:.0%}: {outcome}")
    return "\n".join(lines)


def main(
    model: Annotated[str, typer.Argument(help="'default', a checkpoint folder, a .gguf file or a hub id.")] = "default",
    output: Annotated[Path, typer.Option(help="Folder for the table and raw figures; what is there is not measured again.")] = Path(
        "runs/latency"
    ),
    runtime: Annotated[str, typer.Option(help="As benchmark.runtime in recipes.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="Of the export: fp32, fp16, bf16, int8, int4.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=2, help=f"Interleaved; fewer than {LEAST_ROUNDS} resolve nothing.")] = LEAST_ROUNDS,
    most_seconds: Annotated[float, typer.Option(help="Of timing, per run of a few shapes.")] = 180.0,
    tile: Annotated[int, typer.Option(help="FFN widths are multiples of it.")] = 64,
    blocks: Annotated[int, typer.Option(help="Of the models that the table is made of; 0: as many as needed.")] = 0,
    shapes: Annotated[int, typer.Option(help="Whole models that the table is checked against; 0: no check.")] = SHAPES,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Fill in the place called latency-table.")] = DOCS / "targets.md",
    fill_page: Annotated[bool, typer.Option("--fill/--print-only", help="Write into the page, or only print.")] = False,
) -> None:
    """Measure a latency table, print it, and compare what it predicts with whole models."""
    options = RunOptions(threads=threads) if threads else RunOptions()
    try:
        form = _form(runtime, precision, _recipe(runtime, rounds, most_seconds), options)
        text = measured_document(model, output, form, tile, blocks or None, shapes)
        if page is not None and fill_page:
            fill(page, "latency-table", text)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(text)


def measured_document(model: str, output: Path, form: Form, tile: int, blocks: int | None, count: int) -> str:
    """Everything the command prints; what was measured on this machine already is read from ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    named = ModelSlice(source=model)
    folder = checkpoint_folder(made(output / f"source-{digest(model)[:8]}", lambda out: source(named, form.options, out, QUIET)))
    key = digest(setting_of(Checkpoint(folder).geometry, form, tile) | {"cut": blocks})[:12]
    table = LatencyTable.read(made(output / f"table-{key}", lambda out: latency_table(folder, form, tile, out, QUIET, blocks)))
    checked = None
    if count:
        place = output / f"check-{key}-{count}.json"
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=output, prefix=".models-") as work:
                found = check(folder, table, form, tile, count, Path(work))
            write_json(place, found | {"environment": environment(form.options.threads)})
        checked = read_json(place)
    return document(table, checked)


def _form(runtime: str, precision: str, recipe: BenchmarkSlice, options: RunOptions) -> Form:
    """How models are written for a runtime: portable graphs and engines of them where it runs engines.

    Raises:
        TrimlineError: it needs a GPU that is not there, or there is no such precision.
    """
    if recipe.runtime in ON_GPU and not cuda_devices():
        raise TrimlineError(f"The runtime {runtime} needs a GPU, and the driver sees none here.", "Use --runtime onnxruntime.")
    if FORMS[recipe.runtime] == "gguf":
        raise TrimlineError(f"No table is measured in {runtime}: few of the shapes have a GGUF.", "Use --runtime onnxruntime.")
    if precision not in get_args(Precision):
        raise TrimlineError(f"There is no precision {precision!r}.", f"Use one of {', '.join(get_args(Precision))}.")
    engine = FORMS[recipe.runtime] == "engine"
    export = ExportSlice.model_validate({"precision": precision, "lowering": "portable" if engine else "auto"})
    return Form(export, BuildSlice() if engine else None, recipe, options)


def _recipe(runtime: str, rounds: int, most_seconds: float) -> BenchmarkSlice:
    if runtime not in FORMS:
        raise TrimlineError(f"There is no runtime {runtime!r}.", f"Use one of {', '.join(FORMS)}.")
    return BenchmarkSlice.model_validate({"runtime": runtime, "rounds": rounds, "most_seconds": most_seconds, "minimum_seconds": 0.0})


if __name__ == "__main__":
    typer.run(main)
