"""The verb ``compare``: results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.session import session


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...", help="Output folders of `trimline run`, packages, a sweep's folder (all its points) or single points."
        ),
    ],
    measure: Annotated[
        bool, typer.Option("--measure", help="Time all of them anew, side by side on this machine; speed-ups are then over the first.")
    ] = False,
    together: Annotated[
        int,
        typer.Option(min=1, max=64, help="With --measure: results timed in one interleaved run, beside the first; each holds its weights."),
    ] = 4,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New or empty folder for compare.md and compare.json.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="With --measure: a YAML recipe; its benchmark part says what is timed.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="With --measure: interleaved rounds; fewer than 25 resolve nothing.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="With --measure: of ONNX Runtime; default: every core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Put results side by side at equal latency.

    Who is faster, whose perplexity is lower (window by window), and what of that holds at the same speed. Speeds of different
    machines, runtimes or thread counts are not compared; --measure times the results anew.
    """
    with session(as_json, debug) as here:
        from pipeline.common.options import RunOptions
        from trimline import api
        from trimline.cli.arguments import benchmark_slice
        from trimline.comparisons.tables import notes, tables
        from trimline.reporting.terminal import rich_table

        options = RunOptions(threads=threads) if threads else RunOptions()
        timing = benchmark_slice(recipe, rounds)
        compared = api.compare(
            results, measure=measure, together=together, output=output, recipe=timing, options=options, events=here.events
        )
        for comparison in compared:
            for title, table in tables(comparison):
                here.out.print(rich_table(table, title))
        for note in notes(compared):
            here.out.print(note, highlight=False)
        here.answer({"comparisons": [comparison.as_record() for comparison in compared]})
