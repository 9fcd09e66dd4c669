"""Whether an export may hold the model in memory, and the checkpoint in torch that its gates compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import Paging, open_paged, weights_bytes

# Times the weights in fp32, at most: torch's copy, what ONNX Runtime packs, and room (docs/results.md has the measurement).
HELD = 2.5


def is_mapped(source: Checkpoint, options: RunOptions) -> bool:
    """Whether weights stay in their files, since the export would else hold more than the budget."""
    return HELD * weights_bytes(source, torch.float32) > options.share(1.0)


def too_large(source: Checkpoint) -> str:
    """Half a sentence on what the memory does not allow."""
    weights = weights_bytes(source, torch.float32) / 2**30
    return f"{weights:.3g} GiB in fp32, and {HELD:g} times as much is more than the memory allows"


def open_reference(folder: Path, options: RunOptions, mapped: bool) -> tuple[PreTrainedModel, Paging | None]:
    """The checkpoint in torch, fp32, on the processor: whole, or one block at a time."""
    if mapped:
        return open_paged(folder, replace(options, device="cpu"), torch.float32)
    return load_model(folder, dtype=torch.float32, device="cpu", trust_remote_code=options.trust_remote_code), None
