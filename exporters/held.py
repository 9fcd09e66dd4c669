"""Whether an export may hold the model in memory, and the checkpoint in torch that its gates compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import weights_bytes
from pipeline.live.untouched import load_untouched, parameter_of

# Times the weights in fp32, at most: torch's copy, what ONNX Runtime packs, and room (docs/results.md has the measurement).
HELD = 2.5


def is_mapped(source: Checkpoint, options: RunOptions) -> bool:
    """Whether weights stay in their files, since the export would else hold more than the budget."""
    return HELD * weights_bytes(source, torch.float32) > options.share(1.0)


def too_large(source: Checkpoint) -> str:
    """Half a sentence on what the memory does not allow."""
    weights = weights_bytes(source, torch.float32) / 2**30
    return f"{weights:.3g} GiB in fp32, and {HELD:g} times as much is more than the memory allows"


@dataclass(frozen=True)
class Reference:
    """The checkpoint in torch, fp32, on the processor, as transformers itself loads it.

    Attributes:
        model: whole, or with its blocks left in their files by transformers' own offload to disk.
        again: opens it in another dtype, where the blocks are in their files; None where it is in memory.
    """

    model: PreTrainedModel
    again: Callable[[torch.dtype], PreTrainedModel] | None = None

    def in_double(self, of: Callable[[PreTrainedModel], list[torch.Tensor]]) -> list[torch.Tensor]:
        """What ``of`` gives in fp64; the model goes back to fp32 unchanged."""
        if self.again is not None:
            return of(self.again(torch.float64))
        try:
            return of(self.model.double())  # type: ignore[no-untyped-call]
        finally:
            self.model.float()

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter or buffer by its name in the model."""
        place, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(place)
        buffers = dict(module.named_buffers(recurse=False))
        return buffers[leaf].detach() if leaf in buffers else parameter_of(module, leaf)


def open_reference(folder: Path, options: RunOptions, mapped: bool) -> Reference:
    """No tensor passes through this project's own reader, which is part of what the gates judge.

    Raises:
        TrimlineError: as ``pipeline.live.loading.load_model``.
    """
    held = replace(options, device="cpu", memory=1 if mapped else options.memory)

    def opened(dtype: torch.dtype) -> PreTrainedModel:
        model, report = load_untouched(folder, held, dtype, whole=False)
        if report.missing:
            raise TrimlineError(f"{folder} lacks {len(report.missing)} tensors of its model, first {report.missing[0]}.", "Fetch it again.")
        return model

    if not mapped:
        model = load_model(folder, dtype=torch.float32, device="cpu", trust_remote_code=options.trust_remote_code)
        return Reference(model)
    return Reference(opened(torch.float32), opened)
