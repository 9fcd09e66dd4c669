"""Rows that show what short texts do not: where a sliding window ends, and what the last promised positions are.

A portable graph takes positions as an input, so that few tokens can stand far apart: the mask, of which only zeros are padding,
says by its numbers how far each token is from the one before it. A fused graph takes them from the lengths of texts; its tables
are compared instead (``exporters.onnx.gate.attention``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from exporters.decoder import GraphDecoder
from pipeline.evaluate.gates import gate_tokens, late_positions, row_past_window

LONGEST_WINDOW = 1024  # a longer row costs more than what is known of the window already
LATE = 32  # tokens at late positions


@dataclass(frozen=True)
class FarRow:
    """One row, read without a past.

    Attributes:
        name: for messages.
        ids: (1, tokens).
        positions: (1, tokens), ascending.
        logits: what the graph says at the last tokens, (1, kept, vocabulary).
    """

    name: str
    ids: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor

    def reference(self, model: PreTrainedModel) -> torch.Tensor:
        """What the checkpoint in torch says at the same tokens."""
        kept = self.logits.shape[1]
        mask = torch.ones_like(self.ids)  # without one, jumps are taken for several texts in one row
        with torch.no_grad():
            found = model(self.ids, attention_mask=mask, position_ids=self.positions, use_cache=False, logits_to_keep=kept)
        return found.logits[:, -kept:]


def far_rows(decoder: GraphDecoder, window: int | None, promised: int) -> Iterator[FarRow]:
    """The rows that this graph can be shown.

    Args:
        decoder: that gives all positions.
        window: tokens that a block with a sliding window attends to; None without one.
        promised: positions that the folder says it takes.
    """
    yield _row(decoder, "the first tokens", torch.arange(min(LATE, promised)), LATE)
    length = row_past_window(window, promised)
    if length is not None and window is not None and window <= LONGEST_WINDOW:
        yield _row(decoder, f"beyond the sliding window of {window} tokens", torch.arange(length), min(length - window + 1, length))
    if decoder.lowering != "fused":
        # With a window only neighbours are seen, and distances are those between tokens.
        late = late_positions(promised, LATE) if window is None else torch.arange(max(0, promised - LATE), promised)
        yield _row(decoder, f"up to position {promised - 1}", late, LATE)


def _row(decoder: GraphDecoder, name: str, positions: torch.Tensor, kept: int) -> FarRow:
    ids = gate_tokens(decoder.vocab, rows=1, length=len(positions), seed=1)
    steps = torch.diff(positions, prepend=torch.tensor([-1]))
    logits, _ = decoder.step(ids.numpy(), decoder.empty(1, len(positions)), steps[None].numpy())
    return FarRow(name, ids, positions[None], torch.from_numpy(np.array(logits[:, -kept:])))
