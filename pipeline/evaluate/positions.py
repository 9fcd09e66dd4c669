"""Loss by position: what a model predicts early and late in a window.

A model whose rotary tables, attention or cache were damaged beyond some position has nearly the same mean loss as before; what it
loses late in its windows shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

PARTS = 8  # of a window, of equal length to within one prediction


@dataclass(frozen=True)
class ReadWindow:
    """Of one window.

    Attributes:
        loss: mean cross-entropy, nats per predicted token.
        parts: the same of each eighth of its predictions, in order; empty where there are fewer predictions than that.
    """

    loss: float
    parts: tuple[float, ...] = ()


def reading(logits: torch.Tensor, targets: torch.Tensor) -> ReadWindow:
    """Of logits (N, V) of one window and the tokens (N,) that came."""
    loss = torch.nn.functional.cross_entropy(logits.float(), targets).item()
    if len(targets) < PARTS:
        return ReadWindow(loss)
    pairs = zip(logits.tensor_split(PARTS), targets.tensor_split(PARTS), strict=True)
    return ReadWindow(loss, tuple(torch.nn.functional.cross_entropy(part.float(), wanted).item() for part, wanted in pairs))


def position_record(found: Sequence[ReadWindow]) -> dict[str, Any]:
    """``position_losses``: of every window the losses of its parts; nothing where windows are too short to have any."""
    return {"position_losses": [list(one.parts) for one in found]} if found and all(one.parts for one in found) else {}
