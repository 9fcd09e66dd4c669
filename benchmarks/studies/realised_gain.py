"""``python -m benchmarks.studies.realised_gain DENSE PRUNED…``: how much of the gain that the shapes allow is really there.

Speed only: what the removal did to the model's accuracy is for the report of a run to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.recipe import BenchmarkSlice, Phase
from benchmarks.results.cells import interval, rounds_of
from benchmarks.results.document import PairedComparison
from benchmarks.stage import measure
from benchmarks.studies.pages import demand_folder, markdown_table
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions

TITLES = ("model", "workload", "metric", "rounds", "speed-up", "dense again", "allowed", "realised gain", "bar", "outcome")
BARS: dict[tuple[str, Phase], float] = {("512/1", "prefill"): 0.90, ("128/17", "decode"): 0.95}


def realised_gain(
    dense: Annotated[Path, typer.Argument(help="Exported folder of the dense model.")],
    pruned: Annotated[list[Path], typer.Argument(help="Exported folders of smaller models.")],
    rounds: Annotated[int, typer.Option(min=2, help="Interleaved rounds.")] = 40,
    most_seconds: Annotated[float, typer.Option(help="In all, to go on for while dense against itself is not 1 ± 0.02.")] = 300.0,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write everything that was measured to this JSON file.")] = None,
) -> None:
    """Times prefill (512 tokens) and decode (after 128) and prints speed-up / what the roofline allows."""
    recipe = BenchmarkSlice(rounds=rounds, most_seconds=most_seconds)
    options = RunOptions(threads=threads) if threads else RunOptions()
    try:
        if out:
            demand_folder(out)
        results = measure(dense, _named(pruned), recipe, options, Events())
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    if out:
        out.write_text(json.dumps(results.as_record(), indent=2) + "\n", encoding="utf-8")
    rows = [row for row in results.comparisons if (row.workload, row.phase) in BARS]
    Console(width=None if Console().is_terminal else 160).print(table(rows))


def outcome(row: PairedComparison) -> str:
    """Whether the realised gain reaches its bar; a bar is reached when the confidence interval reaches it."""
    if not row.control_holds:
        return "not resolved"
    return "reached" if row.speedup.reaches(BARS[row.workload, row.phase] * row.allowed) else "missed"


def table(rows: list[PairedComparison]) -> Table:
    """One row per model and phase."""
    found = Table(title="Realised gain = measured speed-up / speed-up that the roofline allows")
    for title in TITLES:
        found.add_column(title)
    for row in rows:
        found.add_row(*_cells(row))
    return found


def markdown_rows(rows: list[PairedComparison]) -> str:
    """The same as ``table``, in Markdown."""
    return markdown_table(list(TITLES), [_cells(row) for row in rows])


def _cells(row: PairedComparison) -> list[str]:
    figures = (interval(row.speedup), interval(row.control), f"{row.allowed:.3f}", interval(row.realised_gain))
    bar = BARS[row.workload, row.phase]
    return [row.model, row.workload, row.phase, rounds_of(row.speedup), *figures, f"{bar:.2f}", outcome(row)]


def _named(folders: list[Path]) -> dict[str, Path]:
    """Each folder under its own name, or under its path where two share a name."""
    names = [folder.resolve().name for folder in folders]
    return {name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)}


if __name__ == "__main__":
    typer.run(realised_gain)
