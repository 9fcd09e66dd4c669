"""``trimline run``: a recipe from end to end."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimline.cli.options import (
    Debug,
    Device,
    DeviceOption,
    DTypeName,
    DTypeOption,
    Json,
    Memory,
    Output,
    RecipeFile,
    Threads,
    Trust,
    run_options,
)
from trimline.cli.session import session

if TYPE_CHECKING:  # it imports everything
    from trimline.stages.run import RunResult


def run(
    recipe: RecipeFile,
    output: Output = Path("runs/run"),
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe from model to package."""
    with session(as_json, debug) as here:
        from trimline import api
        from trimline.reporting import render_terminal

        command = shlex.join(["trimline", *sys.argv[1:]])
        result = api.run(recipe, output, options=run_options(device, dtype, threads, trust, memory), events=here.events, command=command)
        render_terminal(result.report, here.out, result.page)
        here.out.print(f"Package: {result.package}", soft_wrap=True, highlight=False)
        here.answer(_run_answer(result))


def _run_answer(result: RunResult) -> dict[str, Any]:
    """What a script wants of a run: numbers that were measured, and where things are."""
    data = result.report
    return {
        "package": str(result.package),
        "report": str(result.page),
        "models": {row.name: {f.name: _plain(getattr(row, f.name)) for f in fields(row)} for row in data.models},
        "speedups": {
            f"{w.phase}: {w.name}": {
                "speedup": _plain(w.speedup),
                "allowed": w.allowed,
                "realised": _plain(w.realised_gain),
                "verdict": w.verdict,
            }
            for w in data.workloads
        },
        "removed": _plain(data.removed),
        "skipped": [name for name, artefact in result.artefacts.items() if artefact.skipped],
    }


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
