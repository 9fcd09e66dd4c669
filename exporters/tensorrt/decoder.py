"""What decoders that keep their cache on a GPU are fed, and a way to feed any decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class DevicePast:
    """What the model has seen: tokens of a batch, and per cache input a tensor (batch, KV heads, tokens, head_dim)."""

    batch: int
    length: int = 0
    values: dict[str, Any] = field(default_factory=dict)


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
