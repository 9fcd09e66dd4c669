"""One system pruned once, by the code of whichever tree ``PYTHONPATH`` names: processor seconds, memory, and what came of it.

It is started by its path, with no module of ours but those of that tree, and knows where older trees had the same things.
Standard input is what to do, as JSON; standard output, the answer.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def found(name: str, *modules: str) -> Any:
    """Something of ours, from the first of these modules that the tree has."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"This tree has no {name} in {', '.join(modules)}.")


AnonymousPeak = found("AnonymousPeak", "benchmarks.machine.memory", "benchmarks.memory")
batches_of = found("batches_of", "pipeline.live.blocks", "pipeline.calibrate.sweep")
Checkpoint = found("Checkpoint", "pipeline.checkpoints.checkpoint", "pipeline.checkpoint")
Events = found("Events", "pipeline.common.events", "pipeline.events")
RunOptions = found("RunOptions", "pipeline.common.options", "pipeline.options")
load_model = found("load_model", "pipeline.live.loading", "pipeline.loading")
ShrinkingModel = found("ShrinkingModel", "pipeline.prune.model.shrinking", "pipeline.shrinking")
PruneSlice = found("PruneSlice", "pipeline.prune.recipe", "pipeline.recipe")
make_plan = found("make_plan", "pipeline.prune.stage", "pipeline.prune")


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Of all threads of this process, in user and system mode, by its resource usage; and what the work gives."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    started = used()
    result = work()
    return used() - started, result


@torch.inference_mode()
def window_losses(model: Any, windows: torch.Tensor) -> list[float]:
    """Mean cross-entropy of each window (N, S), in nats per token."""
    losses = []
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.float(), window[1:]).item())
    return losses


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Plain forward passes through the decoder's body before and after the plan is made, and the plan."""
    RunOptions(threads=asked["threads"]).apply()
    checkpoint = Checkpoint(Path(asked["model"]))
    model = load_model(checkpoint.folder, dtype=torch.float32)
    windows, read = torch.tensor(asked["windows"]), torch.tensor(asked["evaluation"])
    body = model.get_submodule(checkpoint.geometry.family.blocks.split(".")[0])

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches_of(windows):
            body(input_ids=batch, use_cache=False)

    forward()  # the first is slower
    forwards = [processor_seconds(forward)[0] for _ in range(2)]
    shrinking, wall = ShrinkingModel(model, checkpoint), time.monotonic()
    with AnonymousPeak() as peak:
        seconds, plan = processor_seconds(
            lambda: make_plan(shrinking, windows, PruneSlice.model_validate({"steps": [asked["step"]]}), Events())
        )
    wall = time.monotonic() - wall
    forwards += [processor_seconds(forward)[0] for _ in range(2)]
    selection = plan.selection
    units = {
        f"{space}.{block}": list(of[block])
        for space, of in (("attention", selection.kv_groups), ("ffn", selection.ffn))
        for block in range(len(of))
    }
    return {
        "forward": statistics.median(forwards),
        "seconds": seconds,
        "wall": wall,
        "peak": peak.bytes or 0,
        "units": units,
        "losses": window_losses(model, read) if len(read) else [],
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
