"""What gates and measures ask of a graph that runs, whichever program runs it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class GraphDecoder(Protocol):
    """A decoder graph with a cache.

    Attributes:
        lowering: how it was made; a ``fused`` one takes no positions.
        last_logits_only: logits are of each row's last token.
        vocab: tokens that it knows.
    """

    lowering: str
    last_logits_only: bool
    vocab: int

    def empty(self, batch: int = 1, capacity: int = 0) -> Any:
        """A past without tokens."""

    def step(self, ids: Ids, past: Any, mask: Ids | None = None) -> tuple[Logits, Any]:
        """Logits of token ids (batch, sequence) after a past, and the present."""

    def logits(self, ids: Ids) -> Logits:
        """Logits of token ids (batch, sequence), without a past."""

    def greedy_with_logits(self, prompts: Ids, tokens: int) -> tuple[Ids, Logits]:
        """The most likely next tokens, (prompts, tokens), and the logits that each was chosen by."""
