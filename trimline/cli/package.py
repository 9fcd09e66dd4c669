"""``trimline package``: the folder to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from deploy.recipe import TargetName
from trimline.cli.options import Debug, Device, DeviceOption, DTypeName, DTypeOption, Json, Output, Threads, Trust, run_options
from trimline.cli.session import session

SERVERS: tuple[str, ...] = get_args(TargetName)


def package(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; or a package folder, copied to a new --output with more servers.")],
    output: Output = Path("runs/run"),
    targets: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="SERVER", help=f"Also write serve/SERVER/: {', '.join(SERVERS)}; may be given several times."),
    ] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the folder to ship."""
    with session(as_json, debug) as here:
        from trimline import api

        folder = api.package(recipe, output, targets=targets or (), options=run_options(device, dtype, threads, trust), events=here.events)
        here.out.print(f"Package: {folder}", soft_wrap=True, highlight=False)
        here.answer({"package": str(folder)})
