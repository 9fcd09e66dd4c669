"""A decoder whose cache stays where it computes, in torch's tensors: what runs engines.

An engine writes the present beside the past, so a past can be continued again, and nothing crosses between GPU and main
memory but token ids and, where asked for, logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PAST, PRESENT = "past_key_values.", "present."
PREFILL, DECODE = "prefill", "decode"
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class DevicePast:
    """What the model has seen: tokens of a batch, and per cache input a tensor (batch, KV heads, tokens, head_dim)."""

    batch: int
    length: int = 0
    values: dict[str, Any] = field(default_factory=dict)


class DeviceDecoder:
    """A decoder that ``call`` runs; subclasses open it.

    Attributes:
        device: ``cpu`` or ``cuda``.
        inputs: names that the graph takes.
        caches: cache input to (KV heads, head_dim, dtype).
    """

    device: str
    inputs: list[str]
    caches: dict[str, tuple[int, int, torch.dtype]]

    def call(self, feeds: dict[str, Any], kind: str) -> dict[str, Any]:
        """Runs the graph to its end; outputs by name, on ``device``. ``kind`` is ``prefill`` or ``decode``."""
        raise NotImplementedError

    def empty(self, batch: int = 1, capacity: int = 0) -> DevicePast:
        """A past without tokens; it grows with every call."""
        values = {
            name: torch.empty((batch, heads, 0, width), dtype=dtype, device=self.device)
            for name, (heads, width, dtype) in self.caches.items()
        }
        return DevicePast(batch, 0, values)

    def run(self, ids: Ids, past: DevicePast) -> tuple[Any, DevicePast]:
        """One call: token ids (batch, sequence) to logits on the device, finished, and the longer past.

        Raises:
            TrimlineError: the graph or engine does not take these shapes.
        """
        batch, sequence = ids.shape
        total = past.length + sequence
        feeds = {
            "input_ids": torch.from_numpy(np.ascontiguousarray(ids, np.int64)).to(self.device),
            "attention_mask": torch.ones((batch, total), dtype=torch.long, device=self.device),
            "position_ids": torch.arange(past.length, total, device=self.device).expand(batch, -1).contiguous(),
        }
        feeds = {name: value for name, value in feeds.items() if name in self.inputs} | past.values
        outputs = self.call(feeds, DECODE if sequence == 1 and past.length else PREFILL)
        values = {name: outputs[name.replace(PAST, PRESENT)] for name in self.caches}
        return outputs["logits"], DevicePast(batch, total, values)

    def step(self, ids: Ids, past: DevicePast) -> tuple[NDArray[np.float32], DevicePast]:
        """As ``run``, with the logits as an fp32 array in main memory."""
        logits, present = self.run(ids, past)
        return logits.float().cpu().numpy(), present

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (batch, sequence or 1, vocabulary), computed without a past."""
        return self.step(ids, self.empty(len(ids)))[0]

    def greedy(self, ids: Ids, tokens: int) -> Ids:
        """The ``tokens`` most likely next tokens of prompts of one length, (batch, tokens)."""
        logits, past = self.step(ids, self.empty(len(ids)))
        chosen = [logits[:, -1].argmax(-1)]
        while len(chosen) < tokens:
            logits, past = self.step(chosen[-1][:, None], past)
            chosen.append(logits[:, -1].argmax(-1))
        return np.stack(chosen, axis=1)


def along(decoder: Any, ids: Ids, pieces: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Logits of tokens that any decoder is fed in pieces, one after another.

    Args:
        decoder: has ``empty`` and ``step``.
        ids: (rows, tokens).
        pieces: start and end of each.

    Returns:
        Those of all pieces behind each other, (rows, positions, vocabulary); where a graph gives last logits only, of each piece's end.
    """
    past, found = decoder.empty(len(ids), ids.shape[1]), []
    for start, end in pieces:
        logits, past = decoder.step(ids[:, start:end], past)
        found.append(logits)
    return np.concatenate(found, 1)
