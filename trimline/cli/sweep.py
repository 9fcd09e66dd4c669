"""The verb ``sweep``: a grid of recipes, one page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimline.cli.session import Session, session

if TYPE_CHECKING:
    from trimline.sweeps.data import SweepData


def sweep(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; the points are this recipe with the grid's values.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sweep's folder: new, or that of the sweep to go on with.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="A key of the recipe (prune.steps.0.method, or short: method, remove, speedup) and its values; repeat it for more keys.",
        ),
    ] = None,
    together: Annotated[int, typer.Option(min=1, max=64, help="Points timed in one interleaved run; each holds its weights.")] = 4,
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="Calibrate in so many parts, each a task; they are merged where the method allows it.")
    ] = 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run the stages on this Ray cluster (extra: ray).")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the passes that measure activations or train.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="For torch and ONNX Runtime; default: every core.")] = None,
    trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that a foreign checkpoint carries.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run a grid of recipes; draw what pays.

    Points share every stage that is the same, are timed side by side with the dense model, and end in sweep.html: perplexity
    against speed, the front that no other point beats, and its knee. A point that fails says why and the others go on; the
    same command goes on from there.
    """
    with session(as_json, debug) as here:
        from pipeline.common.options import RunOptions
        from trimline import api
        from trimline.sweeps.grid import parse_grid

        options = RunOptions(device=device, dtype=dtype, trust_remote_code=trust, **({"threads": threads} if threads else {}))
        command = shlex.join(["trimline", *sys.argv[1:]])
        found = api.sweep(
            recipe,
            parse_grid(grid or []),
            output,
            together=together,
            shards=shards,
            ray=ray,
            options=options,
            events=here.events,
            command=command,
        )
        _show(here, found, output)


def _show(here: Session, found: SweepData, output: Path) -> None:
    from pipeline.common.errors import TrimlineError
    from trimline.reporting.terminal import rich_table
    from trimline.sweeps.headline import headline
    from trimline.sweeps.tables import failures_table, short_table

    here.out.print(rich_table(short_table(found), found.title))
    failures = failures_table(found)
    if failures:
        here.out.print(rich_table(failures, "Points that failed"))
    here.out.print(headline(found), markup=False, highlight=False, soft_wrap=True)
    here.out.print(f"Page: {output / 'sweep.html'}", markup=False, highlight=False, soft_wrap=True)
    here.answer(_answer(found, output))
    if found.failed:
        first = found.failed[0]
        raise TrimlineError(
            f"{len(found.failed)} of {len(found.points)} points failed or were not timed, {first.name} first: {first.failure or first.untimed}",
            "The same command goes on from what is there.",
        )


def _answer(found: SweepData, output: Path) -> dict[str, Any]:
    """What a script wants: the knee, and every point with its figures."""
    return {
        "page": str(output / "sweep.html"),
        "knees": {f"{front.phase}: {front.workload}": front.knee for front in found.fronts},
        "fronts": {f"{front.phase}: {front.workload}": front.members for front in found.fronts},
        "points": {
            row.name: {
                "settings": row.settings,
                "perplexity": row.perplexity.value if row.perplexity else None,
                "speedups": {f"{s.phase}: {s.workload}": s.speedup.value for s in row.speeds if s.speedup},
                "failure": row.failure or row.untimed or None,
            }
            for row in found.points
        },
    }
