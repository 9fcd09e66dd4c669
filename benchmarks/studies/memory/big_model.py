"""What a model larger than its memory budget takes: ``python -m benchmarks.studies.memory.big_model``.

A model of random weights at the shapes of Llama-2-7B is written, calibrated, pruned and rebuilt under a budget of memory, each
stage in a process of its own, and deleted. Beside it: a few of its blocks, paged and held in memory in turns, because that is
what paging costs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.machine.environment import processor
from benchmarks.machine.memory import AnonymousPeak
from benchmarks.results.cells import mebibytes
from benchmarks.studies.memory.apart import apart, start
from benchmarks.studies.memory.random_model import LLAMA_2_7B, random_model
from benchmarks.studies.pages import fill, markdown_table
from pipeline.architecture.families import Point
from pipeline.architecture.profile import Profile
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.memory import parse_bytes
from pipeline.common.options import RunOptions
from pipeline.live.paging import open_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

QUIET = Events()
MODULE = "benchmarks.studies.memory.big_model"
BAR = 0.8  # of the tokens per second of blocks that are held in memory
PLAN, SMALLER = "plan", "smaller"
STEPS: dict[str, tuple[dict[str, Any], float]] = {  # and the anonymous memory that each may take, in GB
    "cfsp": ({"method": "cfsp", "budget": {"ffn": {"remove": 0.3}}}, 3.0),
    "gblm": ({"method": "gblm", "budget": {"ffn": {"remove": 0.3}}}, 6.0),
    "llm_surgeon": ({"method": "llm_surgeon", "budget": {"ffn": {"remove": 0.3}}}, 6.0),
}


def planned(folder: Path, method: str, windows: int, window: int, options: RunOptions, out: Path) -> None:
    """The plan of one method on random tokens."""
    options.apply()
    checkpoint = Checkpoint(folder)
    tokens = torch.randint(0, checkpoint.geometry.vocab, (windows, window), generator=torch.Generator().manual_seed(0))
    model, paging = open_model(folder, options, options.resolved_dtype())
    out.mkdir()
    make_plan(ShrinkingModel(model, checkpoint, paging), tokens, PruneSlice.model_validate({"steps": [STEPS[method][0]]}), QUIET).write(out)


def rebuilt(folder: Path, options: RunOptions, out: Path) -> None:
    """The smaller checkpoint of the plan that lies beside."""
    out.mkdir()
    rebuild(folder, out.parent / PLAN, RebuildSlice(profile=Profile.DECILM), options, out, QUIET)


def measured(work: Callable[[], None]) -> dict[str, Any]:
    """Seconds of the work, and this process's most anonymous memory during it."""
    started = time.monotonic()
    with AnonymousPeak() as peak:
        work()
    return {"seconds": time.monotonic() - started, "peak": peak.bytes}


def paging_cost(folder: Path, windows: int, window: int, options: RunOptions, rounds: int) -> dict[str, Any]:
    """Tokens per second of a calibration sweep, blocks paged over blocks held, in turns."""
    options.apply()
    checkpoint = Checkpoint(folder)
    tokens = torch.randint(0, checkpoint.geometry.vocab, (windows, window), generator=torch.Generator().manual_seed(0))
    needs = Needs(distance=True, squares=frozenset({Point.CHANNELS}))
    seconds: dict[str, list[float]] = {"held": [], "paged": []}
    dtype = options.resolved_dtype()
    budgets = {"held": RunOptions(threads=options.threads, memory=2**60), "paged": options}
    models = {name: open_model(folder, budget, dtype) for name, budget in budgets.items()}
    for _ in range(rounds):
        for name, (model, paging) in models.items():
            started = time.monotonic()
            for _block in sweep(model, checkpoint.geometry.family, tokens, needs, QUIET):
                pass
            seconds[name].append(time.monotonic() - started)
            if paging is not None:
                paging.leave()
    ratio = median(held / paged for held, paged in zip(seconds["held"], seconds["paged"], strict=True))
    return {"ratio": ratio, "seconds": seconds, "tokens": tokens.numel()}


def main(
    blocks: Annotated[int, typer.Option(help="Of the model.")] = 32,
    method: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(STEPS)}.")] = None,
    windows: Annotated[int, typer.Option(help="Of calibration.")] = 8,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    memory: Annotated[str, typer.Option(help="The budget.")] = "2GiB",
    rounds: Annotated[int, typer.Option(help="Of paged against held.")] = 5,
    work: Annotated[Path | None, typer.Option(help="Folder for the model, which is deleted; 27 GB at full size.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch.")] = RunOptions().threads,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at big-model.")] = None,
) -> None:
    """Print seconds and peaks of every stage beside the bars, and what paging costs."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        few = random_model(Path(folder) / "few", LLAMA_2_7B | {"num_hidden_layers": 2})
        how = {"memory": memory, "threads": threads}
        tokens = {"windows": windows, "window": window}
        cost = apart(MODULE, "cost", folder=str(few), rounds=rounds, **tokens, **how)
        typer.echo(f"paged over held: {cost['ratio']:.3f}", err=True)
        model = random_model(Path(folder) / "model", LLAMA_2_7B | {"num_hidden_layers": blocks})
        for name in method or STEPS:
            place = Path(folder) / name
            place.mkdir()
            rows += _stages(name, model, place, tokens, how)
    rows.append(["tokens/s of calibration, paged over held", "", f"{cost['ratio']:.3f}", f"{BAR}"])
    table = markdown_table(["stage", "seconds", "peak anonymous MiB", "bar"], rows)
    asked = f"{windows} windows of {window} tokens, a budget of {memory}, {RunOptions(threads=threads).as_record()['dtype']}"
    table += f"\n\n{asked}, on {processor()}."
    typer.echo(table)
    if page is not None:
        fill(page, "big-model", table)


def _stages(name: str, model: Path, place: Path, tokens: dict[str, int], how: dict[str, Any]) -> list[list[str]]:
    bar = f"{mebibytes(int(STEPS[name][1] * 1e9))}"
    tasks: dict[str, tuple[str, dict[str, Any]]] = {"calibrate and prune": ("plan", {"method": name, "out": str(place / PLAN), **tokens})}
    if name == "cfsp":
        tasks["rebuild and gate"] = "rebuild", {"out": str(place / SMALLER)}
    rows = []
    for title, (do, what) in tasks.items():
        found = apart(MODULE, do, folder=str(model), **what, **how)
        rows.append([f"{name}: {title}", f"{found['seconds']:.0f}", mebibytes(found["peak"]), bar])
        typer.echo(", ".join(rows[-1]), err=True)  # an hour may pass before the table
    return rows


def plan_apart(folder: str, method: str, out: str, windows: int, window: int, memory: str, threads: int) -> dict[str, Any]:
    """What calibrating and pruning take in this process."""
    return measured(lambda: planned(Path(folder), method, windows, window, _options(memory, threads), Path(out)))


def rebuild_apart(folder: str, out: str, memory: str, threads: int) -> dict[str, Any]:
    """What rebuilding takes in this process."""
    return measured(lambda: rebuilt(Path(folder), _options(memory, threads), Path(out)))


def cost_apart(folder: str, windows: int, window: int, memory: str, threads: int, rounds: int) -> dict[str, Any]:
    """What paging costs in this process."""
    return paging_cost(Path(folder), windows, window, _options(memory, threads), rounds)


def _options(memory: str, threads: int) -> RunOptions:
    return RunOptions(threads=threads, memory=parse_bytes(memory))


if __name__ == "__main__":
    start(main, {"plan": plan_apart, "rebuild": rebuild_apart, "cost": cost_apart})
