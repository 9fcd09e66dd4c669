"""What a block's routed experts give, in the one pass that computes the block: which, with which weight, how large.

A block of a mixture calls its experts with hidden states (T, H), the indices of the k that its router chose for each token, and their
weights, both (T, k). Here each token goes in k times, once for each of its experts and with weight one. So every output is seen by
itself, no expert computes anything twice, and the weighted sum over the k is what the block would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family
from pipeline.live.routing import logits_noted

Seen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass
class RoutedStatistics:
    """Sums over the tokens that were routed to each of E experts, fp32, shape (E,).

    f is an expert's output for a token before it is weighted, g the router's weight of it over the sum of the chosen ones' weights, p the
    router's score of it among all experts (the softmax of its logits).

    Attributes:
        tokens: how many.
        gates: Σ g.
        norms: Σ ‖f‖.
        gated: Σ g ‖f‖.
        scored: Σ p ‖f‖.
    """

    tokens: torch.Tensor
    gates: torch.Tensor
    norms: torch.Tensor
    gated: torch.Tensor
    scored: torch.Tensor

    @classmethod
    def zeros(cls, experts: int, device: torch.device) -> RoutedStatistics:
        return cls(*(torch.zeros(experts, dtype=torch.float32, device=device) for _ in range(5)))

    def add(self, index: torch.Tensor, weights: torch.Tensor, outputs: torch.Tensor, scores: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            index: chosen experts, (T, k).
            weights: of them, (T, k), on any scale.
            outputs: theirs, (T, k, H).
            scores: of all experts, (T, E).
        """
        norms = outputs.float().norm(dim=-1)
        gates = weights.float() / weights.float().sum(dim=-1, keepdim=True)
        chosen = scores.float().gather(1, index)
        for total, values in (
            (self.tokens, torch.ones_like(norms)),
            (self.gates, gates),
            (self.norms, norms),
            (self.gated, gates * norms),
            (self.scored, chosen * norms),
        ):
            total.index_add_(0, index.flatten(), values.flatten())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return self.tokens, self.gates, self.norms, self.gated, self.scored

    def plus(self, other: RoutedStatistics) -> RoutedStatistics:
        """Of the tokens of both."""
        return RoutedStatistics(*(one + two for one, two in zip(self.tensors(), other.tensors(), strict=True)))


@contextmanager
def routed_outputs(block: nn.Module, family: Family, see: Seen) -> Iterator[None]:
    """For as long as it lasts, ``see`` is given index (T, k), weights (T, k), outputs (T, k, H) and logits (T, E) of every call."""
    assert family.mixture is not None
    experts = block.get_submodule(family.mixture.experts)
    stock, before = experts.forward, experts.__dict__.get("forward")
    with logits_noted(block, family) as logits:

        def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            outputs = apart(stock, hidden, index)
            see(index, weights, outputs, logits[0].reshape(len(index), -1))
            return (outputs * weights[..., None].to(outputs.dtype)).sum(dim=1).to(hidden.dtype)

        experts.forward = forward
        try:
            yield
        finally:
            del experts.forward
            if before is not None:
                experts.forward = before


def apart(experts: Callable[..., torch.Tensor], hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Every chosen expert's output for every token, (T, k, H).

    Args:
        experts: called with hidden states, index and weights.
        hidden: (T, H).
        index: (T, k).
    """
    chosen = index.shape[1]
    rows = hidden.repeat_interleave(chosen, dim=0)
    outputs = experts(rows, index.reshape(-1, 1), torch.ones(len(rows), 1, dtype=hidden.dtype, device=hidden.device))
    return outputs.view(-1, chosen, hidden.shape[-1])
