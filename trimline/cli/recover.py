"""``trimline recover``: a smaller checkpoint, trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimline.cli.options import (
    Debug,
    Device,
    DeviceOption,
    DTypeName,
    DTypeOption,
    Json,
    Output,
    RecipeFile,
    Threads,
    Trust,
    run_options,
    show_folder,
)
from trimline.cli.session import session


def recover(
    recipe: RecipeFile,
    pruned: Annotated[Path, typer.Argument(help="A folder that `trimline rebuild` wrote, or any checkpoint folder.")],
    output: Output,
    model: Annotated[str | None, typer.Option(help="The dense model, instead of the recipe's; for distillation.")] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Annotated[str | None, typer.Option(help="What may be used, such as 16GiB; training has the model whole.")] = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train what was rebuilt, and prove the result."""
    with session(as_json, debug) as here:
        from pipeline.common.events import Events
        from pipeline.recover.processes import first_process
        from trimline import api

        options = run_options(device, dtype, threads, trust, memory)
        events = here.events if first_process() else Events()
        folder = api.recover(recipe, pruned, output, model=model, options=options, events=events)
        if first_process():
            show_folder(here, folder)
