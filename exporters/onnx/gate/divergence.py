"""How far two runs of one graph lie apart where rounding may differ: mean KL divergence of what they predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.common.errors import GateError

BAR = 0.05  # nats; int8 per tensor, whose scale depends on all tokens of a call, comes nearest to it


@dataclass(frozen=True)
class Divergence:
    """Attributes:
    difference: mean over positions of KL(reference ‖ candidate), nats.
    bar: what it may be.
    largest: at any one position.
    agreed, compared: positions whose most likely token is the same.
    """

    difference: float
    bar: float
    largest: float
    agreed: int
    compared: int

    @property
    def passed(self) -> bool:
        return self.difference <= self.bar

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible, under the names that logit comparisons have."""
        return {
            "difference": self.difference,
            "bar": self.bar,
            "unit": "nats",
            "kl_divergence": self.difference,
            "largest_kl_divergence": self.largest,
            "tokens_agreed": self.agreed,
            "tokens_compared": self.compared,
            "passed": self.passed,
        }


def compare_distributions(reference: torch.Tensor, candidate: torch.Tensor, bar: float = BAR) -> Divergence:
    """Compares logits of shape (batch, positions, vocabulary); ``bar`` in nats.

    Raises:
        GateError: the shapes differ, or the candidate holds NaN or Inf.
    """
    if reference.shape != candidate.shape:
        raise GateError(f"The logits have shape {tuple(candidate.shape)} instead of {tuple(reference.shape)}.")
    if not torch.isfinite(candidate).all():
        raise GateError("The logits of the new form hold NaN or Inf.", "fp16 overflows beyond 65,504: export in another precision.")
    log_p, log_q = reference.float().log_softmax(-1), candidate.float().log_softmax(-1)
    apart = (log_p.exp() * (log_p - log_q)).sum(-1)
    agreed = int((reference.argmax(-1) == candidate.argmax(-1)).sum())
    return Divergence(apart.mean().item(), bar, apart.max().item(), agreed, apart.numel())
