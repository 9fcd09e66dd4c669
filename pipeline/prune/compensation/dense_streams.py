"""What comes of every sublayer of the dense model, computed once: each refit aims at it, and so no dense model is kept beside the pruned one.

Where a step measures gradients first, the forward pass of that sweep notes it. Where the measurement is known, the first refit does, in the
blocks that it has not cut yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from pipeline.architecture.families import Sublayer
from pipeline.live.blocks import Arguments, linear_in
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.tensors.saved_states import MEMORY_LIMIT, SavedStates, saved_states

AIMED = tuple(Sublayer)


class DenseStreams:
    """Aims by block, sublayer and batch: the residual stream behind a sublayer; where a norm stands between, what its reader writes.

    Attributes:
        is_whole: whether all blocks were run.
    """

    def __init__(self, model: ShrinkingModel, saved: SavedStates) -> None:
        self.is_whole = False
        self._family, self._saved = model.geometry.family, saved
        self._multiplier = model.multiplier(Sublayer.ATTENTION)

    def run(self, number: int, index: int, block: nn.Module, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Runs a dense block on a batch, noting its aims; what leaves it.

        Raises:
            OSError: the disk is full.
        """
        wrote: dict[Sublayer, torch.Tensor] = {}
        with ExitStack() as hooks:
            for sublayer in self._family.cuttable:
                note = lambda _, __, output, sublayer=sublayer: wrote.__setitem__(sublayer, output)  # noqa: E731
                if (reader := linear_in(block, self._family.reader(sublayer))) is not None:
                    hooks.callback(reader.register_forward_hook(note).remove)
            after = arguments.through(block, hidden)
        streams = {Sublayer.FFN: after}
        if Sublayer.ATTENTION in wrote and self._family.adds(Sublayer.ATTENTION):
            streams[Sublayer.ATTENTION] = hidden + self._multiplier * wrote[Sublayer.ATTENTION].view_as(hidden)
        for sublayer, output in wrote.items():
            aim = streams[sublayer] if self._family.adds(sublayer) else output.view_as(hidden)
            self._saved.put((number * len(AIMED) + AIMED.index(sublayer), index), aim)
        return after

    def aim(self, number: int, sublayer: Sublayer, index: int) -> torch.Tensor:
        """Of one batch, shape (B, S, H)."""
        return self._saved.look((number * len(AIMED) + AIMED.index(sublayer), index))


@contextmanager
def dense_streams(model: ShrinkingModel) -> Iterator[DenseStreams]:
    """An empty store. Beside what the gradients' sweep keeps it holds half as much in memory, the rest in a file."""
    limit = MEMORY_LIMIT if model.waiting_bytes is None else min(MEMORY_LIMIT, model.waiting_bytes)
    with saved_states(limit // 2) as saved:
        yield DenseStreams(model, saved)
