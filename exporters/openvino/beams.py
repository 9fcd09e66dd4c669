"""Rows of a state that change places between two calls, as beams do: one more path of the gate."""

from __future__ import annotations

import numpy as np
import torch

from exporters.onnx.gate.paths import GraphPath, RowGroup
from exporters.openvino.session import OpenvinoDecoder

STEPS = 4


def reordered(decoder: OpenvinoDecoder, ids: torch.Tensor) -> GraphPath:
    """Two rows that swap places after the prompt; each goes on with its own tokens in the other's place."""
    cut = ids.shape[1] - STEPS
    logits, past = decoder.step(ids[:, :cut].numpy(), decoder.empty(2))
    found, swapped = [], ids.flip(0)
    for at in range(cut, ids.shape[1]):
        order = [1, 0] if at == cut else None
        logits, past = decoder.step(swapped[:, at : at + 1].numpy(), past, order=order)
        found.append(logits[:, -1:])
    return GraphPath(
        "rows that change places", (RowGroup(swapped, tuple(range(cut, ids.shape[1])), torch.from_numpy(np.concatenate(found, 1))),)
    )
