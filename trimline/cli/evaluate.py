"""``trimline evaluate``: perplexity of a checkpoint or an export."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from trimline.cli.options import Debug, Device, DeviceOption, DTypeName, Json, Memory, Model, Threads, Trust, run_options
from trimline.cli.session import session
from trimline.cli.tasks import Batch, Limit, Shots, TaskCode, Tasks, evaluate_tasks, only_with_tasks


def evaluate(
    model: Model,
    text: Annotated[str, typer.Option(help="'default', a .txt/.jsonl/.parquet file, or a hub data set.")] = "default",
    windows: Annotated[int, typer.Option(min=1, help="How many windows.")] = 16,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window; they do not overlap.")] = 1024,
    task: Tasks = None,
    shots: Shots = None,
    limit: Limit = None,
    batch: Batch = 1,
    allow_task_code: TaskCode = False,
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure perplexity, or what lm-eval measures, of a model or an exported folder."""
    with session(as_json, debug) as here:
        from trimline import api

        options = run_options(device, DTypeName.AUTO, threads, trust, memory)
        if task:
            return evaluate_tasks(here, model, task, options, shots=shots, limit=limit, batch=batch, allow_task_code=allow_task_code)
        only_with_tasks(shots is not None or limit is not None or batch != 1 or allow_task_code)
        found = api.evaluate(model, text=text, windows=windows, window=window, options=options, events=here.events)
        error = "" if found.standard_error is None else f" ± {found.standard_error:.2f}"
        here.out.print(f"Perplexity {found.value:.2f}{error} ({windows} windows of {window} tokens).", highlight=False)
        return here.answer(asdict(found))
