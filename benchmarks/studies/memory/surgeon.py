"""What LLM Surgeon holds in memory at the shapes of Llama-2-7B: ``python -m benchmarks.studies.memory.surgeon``.

The published code keeps the two factors of every projection of every block at once. Here a sweep backwards holds those of
one block. The model is random, with few blocks and few tokens: neither changes what one block's factors take.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.machine.environment import environment
from benchmarks.machine.memory import AnonymousPeak, process_memory
from benchmarks.studies.memory.apart import apart, start
from benchmarks.studies.memory.random_model import LLAMA_2_7B, random_model
from benchmarks.studies.pages import fill, markdown_table
from pipeline.architecture.families import Linear, Point
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan

GIB = 2**30
STEP = {"method": "llm_surgeon", "pooled": {"remove": 0.25}, "compensation": "least_squares"}


def factor_bytes(geometry: Geometry, linears: tuple[Linear, ...], shared: bool) -> int:
    """Of A and G of these projections in all blocks, fp32; ``shared`` counts the A of projections with the same inputs once."""
    total = 0
    for block in geometry.blocks:
        seen: set[Point] = set()
        for linear in linears:
            rows, columns = geometry.linear_shape(linear, block)
            total += 4 * rows**2 + (0 if shared and linear.point in seen else 4 * columns**2)
            seen.add(linear.point)
    return total


def measured(folder: Path, windows: int, window: int) -> dict[str, Any]:
    """Bytes of this process: with the model alone, and at most while a step runs."""
    checkpoint = Checkpoint(folder)
    model = ShrinkingModel(load_model(folder, dtype=torch.bfloat16), checkpoint)
    tokens = torch.randint(0, checkpoint.geometry.vocab, (windows, window), generator=torch.Generator().manual_seed(0))
    before = process_memory()["anonymous"]
    with AnonymousPeak() as peak:
        make_plan(model, tokens, PruneSlice.model_validate({"steps": [STEP]}), Events())
    removed = 1 - model.current.decoder_parameters() / model.geometry.decoder_parameters()
    return {"model": before, "peak": peak.bytes, "removed": removed}


def in_a_child(folder: Path, windows: int, window: int, threads: int) -> dict[str, Any]:
    """The same in a process of its own, which never held anything else."""
    return apart("benchmarks.studies.memory.surgeon", "peak", folder=str(folder), windows=windows, window=window, threads=threads)


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of the model.")] = 2,
    windows: Annotated[int, typer.Option(help="Calibration windows.")] = 2,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 128,
    threads: Annotated[int, typer.Option(help="Of torch.")] = RunOptions().threads,
    output: Annotated[Path | None, typer.Option(help="Also write the figures there, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at surgeon-memory.")] = None,
) -> None:
    """Print what is measured beside what the published code's factors take by their shapes."""
    whole = Geometry.from_config(LLAMA_2_7B)
    one = whole.with_blocks(whole.blocks[:1])
    readers = tuple(linear for linear in whole.family.linears if linear.columns != "residual")
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "model", LLAMA_2_7B | {"num_hidden_layers": blocks})
        found = in_a_child(model, windows, window, threads)
    published = factor_bytes(whole, whole.family.linears, shared=False)
    rows = [
        ["published: factors of all projections, all blocks", f"{published / GIB:.1f}", "100%"],
        *[
            [what, f"{size / GIB:.2f}", f"{size / published:.1%}"]
            for what, size in {
                "factors of one block, FFN channels and KV groups": factor_bytes(one, readers, shared=True),
                "factors of one block, single weights": factor_bytes(one, whole.family.linears, shared=True),
                f"measured beyond the model, {blocks} blocks": found["peak"] - found["model"],
                f"measured with the model, {blocks} blocks": found["peak"],
            }.items()
        ],
    ]
    table = markdown_table(["Llama-2-7B shapes", "GiB", "of published"], rows)
    typer.echo(table)
    if page is not None:
        fill(page, "surgeon-memory", table)
    if output is not None:
        document = {"published": published, "tokens": windows * window, "blocks": blocks, **found, "environment": environment(threads)}
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def child(folder: str, windows: int, window: int, threads: int) -> dict[str, Any]:
    """One measurement."""
    RunOptions(threads=threads).apply()
    return measured(Path(folder), windows, window)


if __name__ == "__main__":
    start(main, {"peak": child})
