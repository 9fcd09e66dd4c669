"""What calibrating and pruning costs, in forward passes: ``python -m benchmarks.studies.cfsp.cost``.

Processor time of everything between the loaded model and the finished plan (sweep, scores, allocation, removal, and
least squares where asked for), over that of one plain forward of the same windows in the same batches through the
decoder body. No output head on either side; loading and saving excluded on both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.machine.environment import environment
from benchmarks.studies.pages import fill, markdown_table
from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.blocks import batches_of
from pipeline.live.loading import load_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import Budget, PruneSlice, PruneStep
from pipeline.prune.stage import make_plan

REMOVE = 0.5


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.inference_mode()
def plain_forward(body: nn.Module, windows: torch.Tensor) -> None:
    """The decoder body over all windows, in the batches that the sweep uses."""
    for batch in batches_of(windows):
        body(input_ids=batch, use_cache=False)


def cost(checkpoint: Checkpoint, windows: torch.Tensor, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds, seconds of processor time, and their ratios to the plain forward.

    Args:
        checkpoint: a dense model.
        windows: token ids, shape (N, S).
        dtype: of the forward passes.
        rounds: how often everything is timed; one warm-up forward comes first.
    """
    family = checkpoint.geometry.family
    model = load_model(checkpoint.folder, dtype=dtype)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipes = {
        "CFSP as published": PruneSlice(steps=(PruneStep(budget={Space.FFN: Budget(remove=REMOVE)}),)),
        "CFSP with least squares": PruneSlice(steps=(PruneStep(budget={Space.FFN: Budget(remove=REMOVE)}, compensation="least_squares"),)),
    }
    body = model.get_submodule(family.blocks.split(".")[0])
    plain_forward(body, windows[:1])
    seconds: dict[str, list[float]] = {"plain forward": [], **{name: [] for name in recipes}}
    for _ in range(rounds):
        seconds["plain forward"].append(processor_seconds(lambda: plain_forward(body, windows)))
        for name, recipe in recipes.items():
            shrinking = ShrinkingModel(model, checkpoint)
            seconds[name].append(processor_seconds(lambda s=shrinking, r=recipe: make_plan(s, windows, r, Events())))  # type: ignore[misc]
            model.load_state_dict(weights)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    ratios = {name: medians[name] / medians["plain forward"] for name in recipes}
    return {"dtype": str(dtype).removeprefix("torch."), "tokens": windows.numel(), "seconds": seconds, "ratios": ratios}


def main(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    windows: Annotated[int, typer.Option(help="How many windows.")] = 32,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    threads: Annotated[int, typer.Option(help="Of torch.")] = RunOptions().threads,
    output: Annotated[Path | None, typer.Option(help="Also write the figures there, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at cfsp-cost.")] = None,
) -> None:
    """Print the cost of calibrate + prune in plain forwards, in fp32 and bf16."""
    RunOptions(threads=threads).apply()
    checkpoint = Checkpoint(model)
    tokens = torch.randint(0, checkpoint.geometry.vocab, (windows, window), generator=torch.Generator().manual_seed(0))
    results = [cost(checkpoint, tokens, dtype, rounds) for dtype in (torch.float32, torch.bfloat16)]
    rows = [[row["dtype"], str(row["tokens"]), *(f"{ratio:.2f}" for ratio in row["ratios"].values())] for row in results]
    table = markdown_table(["dtype", "tokens", *results[0]["ratios"]], rows)
    typer.echo(table)
    if page is not None:
        fill(page, "cfsp-cost", table)
    if output is not None:
        output.write_text(json.dumps({"results": results, "environment": environment(threads)}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
