"""Options of ``trimline bench``: what is timed, and ``--targets``, what could be timed on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.options import Debug, Device, DeviceOption, DTypeName, Json, Output, Threads, run_options
from trimline.cli.session import session


def _show(wanted: bool) -> None:
    if not wanted:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from benchmarks.runtimes.runs_here import runs_here

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("Runtime", "Opens", "Here"):
        table.add_column(title, overflow="fold")
    runtimes, console = list(runs_here()), Console()
    for found in runtimes:
        table.add_row(found.runtime, found.opens, found.lacks or ", ".join(filter(None, ("yes", found.where))))
    console.print(table, markup=False)
    for found in runtimes:  # a line each, however long, to be copied: a table would break them
        console.print(f"{found.runtime}: {found.how}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit


Targets = Annotated[
    bool, typer.Option("--targets", is_eager=True, callback=_show, help="Print what could be timed on this machine, and end.")
]
Workloads = Annotated[
    list[str] | None,
    typer.Option(metavar="PROMPT/OUTPUT", help="Instead of the recipe's, such as 512/128; repeat it. 'named': 128/128 and four others."),
]
Batches = Annotated[list[int] | None, typer.Option(min=1, help="Time every workload with it; repeat it for a sweep.")]
RuntimeName = Annotated[str | None, typer.Option(help="Instead of the recipe's; --targets lists them.")]
MostSeconds = Annotated[
    float | None,
    typer.Option(min=1.0, help="Of timing, all together; by default the recipe's, and in proportion where more workloads are named."),
]


def bench(
    dense: Annotated[
        Path, typer.Argument(help="Folder that the others are compared with: ONNX, or what the recipe's benchmark.runtime opens.")
    ],
    candidates: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of the same kind.")],
    output: Output,
    perplexity: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Once for dense, once per folder by its name; no speed without one.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; its benchmark part says what is timed.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds; default 25, and fewer resolve nothing.")] = None,
    workload: Workloads = None,
    batch: Batches = None,
    runtime: RuntimeName = None,
    most_seconds: MostSeconds = None,
    targets: Targets = False,
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time exported folders, engines or checkpoints side by side."""
    with session(as_json, debug) as here:
        from trimline import api
        from trimline.cli.arguments import benchmark_slice, by_name, parse_accuracy

        named = by_name(candidates)
        accuracy = parse_accuracy(perplexity or [], ["dense", *named])
        options = run_options(device, DTypeName.AUTO, threads, False)
        timing = benchmark_slice(recipe, rounds, workload or (), batch or (), runtime, most_seconds)
        results = api.bench(dense, named, output, accuracy=accuracy, recipe=timing, options=options, events=here.events)
        here.out.print((output / "results.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        here.answer({"folder": str(output), "comparisons": results["comparisons"]})
