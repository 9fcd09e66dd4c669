"""``trimline rebuild``: the smaller checkpoint of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trimline.cli.options import (
    Debug,
    Device,
    DeviceOption,
    DTypeName,
    Json,
    Memory,
    Model,
    Output,
    Threads,
    Trust,
    run_options,
    show_folder,
)
from trimline.cli.session import session


def rebuild(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="A plan folder, as `trimline prune` writes it.")],
    output: Output,
    profile: Annotated[Literal["uniform", "decilm", "free"], typer.Option(help="What shapes the consumer accepts.")] = "uniform",
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a plan and prove the result."""
    with session(as_json, debug) as here:
        from trimline import api

        options = run_options(device, DTypeName.AUTO, threads, trust, memory)
        folder = api.rebuild(model, plan, output, profile=profile, options=options, events=here.events)
        show_folder(here, folder)
