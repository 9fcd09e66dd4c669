"""Whether a training run fits into memory: said before anything of it is read."""

from __future__ import annotations

import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.live.paging import weights_bytes
from pipeline.recover.processes import processes, processes_here
from pipeline.recover.recipe import RecoverSlice

MOMENTS = 2  # of AdamW, for every trained weight


def held_bytes(pruned: Checkpoint, dense: Checkpoint | None, recipe: RecoverSlice, dtype: torch.dtype, together: int) -> int:
    """What one process holds all the time, hidden states and adapters aside.

    The weights are read whole, in fp32; every trained one has a gradient and two moments, which ``recipe.sharded`` deals out.

    Args:
        pruned: what is trained.
        dense: the teacher; None without distillation.
        recipe: how to train.
        dtype: of the teacher.
        together: processes that train together.
    """
    weights = weights_bytes(pruned, torch.float32)
    frozen = 0 if recipe.trains_embeddings(pruned.geometry.tied) else _tables(pruned)
    trained = (1 + MOMENTS) * (weights - frozen) if recipe.kind == "full" else 0
    teacher = 0 if dense is None else weights_bytes(dense, dtype)
    return weights + trained // (together if recipe.sharded else 1) + teacher


def _tables(pruned: Checkpoint) -> int:
    """Bytes in fp32 of token table and head."""
    geometry = pruned.geometry
    return 4 * geometry.vocab * geometry.hidden * (1 if geometry.tied else 2)


def demand_memory(pruned: Checkpoint, dense: Checkpoint | None, recipe: RecoverSlice, options: RunOptions) -> None:
    """Refuses what the budget does not hold, since training has the model whole.

    Raises:
        TrimlineError: weights, gradients, moments and teacher are more than weights may take.
    """
    held = held_bytes(pruned, dense, recipe, options.resolved_dtype(), processes())
    if options.device == "cpu":
        held *= processes_here()  # they share one memory
    if options.holds(held):
        return
    instead = [
        *(["recover.kind: lora"] if recipe.kind == "full" else []),
        *(["recover.loss: text"] if dense is not None else []),
        *(["several devices with recover.sharded: true (docs/recovery.md)"] if recipe.kind == "full" and not recipe.sharded else []),
    ]
    raise TrimlineError(
        f"This training holds {held / 2**30:.3g} GiB of weights, gradients, moments and teacher, and they may take "
        f"{options.for_weights() / 2**30:.3g} GiB.",
        "Give --memory more, or a machine that has it" + (f", or use {' or '.join(instead)}." if instead else "."),
    )
