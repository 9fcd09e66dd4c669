"""How the loss moves where a token's expert could not be chosen, to first order, for every token and each of its experts.

Of a token the k experts with the highest scores s are chosen, and y = Σ w_i f_i is what they add. Without expert c the next best, n, comes
in and the weights are shared out anew: y' = Σ w'_i f_i over the other chosen and n. The loss then moves by about δ · (y' − y), δ its
gradient at y. Weights are s over the sum of the chosen s where routers normalise, and else s itself, which without c is s / (1 − s_c): then
an expert that goes also moves tokens that it was not chosen for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family
from pipeline.calibrate.routed import apart
from pipeline.live.routing import logits_noted

SAME = 1e-3  # how far sums of weights may lie apart where they are normalised: they come from bf16 too


@dataclass
class RoutedCall:
    """What the experts of a block were called with, and what they gave.

    Attributes:
        index, weights: of the chosen experts, (T, k).
        following: the next best expert, (T,), and its output ``other``, (T, H).
        scores: of all experts, (T, E).
        outputs: of the chosen ones, (T, k, H).
        total: Σ w f, (T, H), in the graph.
    """

    index: torch.Tensor
    weights: torch.Tensor
    following: torch.Tensor
    scores: torch.Tensor
    outputs: torch.Tensor
    other: torch.Tensor
    total: torch.Tensor

    def moves(self, slope: torch.Tensor) -> torch.Tensor:
        """δ · (y' − y) for each expert, shape (T, E), fp32; ``slope`` is δ, (T, H)."""
        slope = slope.float()
        along = torch.einsum("th,tkh->tk", slope, self.outputs.float())
        other = torch.einsum("th,th->t", slope, self.other.float())
        return moved(along, other[:, None], self.weights.float(), self.scores, self.index, self.following[:, None])


def moved(
    along: torch.Tensor, other: torch.Tensor, weights: torch.Tensor, among: torch.Tensor, index: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """Change of Σ w a where an expert could not be chosen, for each of all; shape (T, E).

    Args:
        along: a of the chosen, (T, k).
        other: a of the next best, (T, 1).
        weights: w of the chosen, (T, k).
        among: s of all experts, (T, E), of which the weights are made.
        index: which are chosen, (T, k).
        following: the next best, (T, 1).
    """
    scores, entering = among.gather(1, index), among.gather(1, following)
    totals = weights.sum(dim=1, keepdim=True)
    before = (weights * along).sum(dim=1, keepdim=True)
    # w = scale · s, so that what is left adds up as it is shared out.
    scale = totals / scores.sum(dim=1, keepdim=True)
    left = scale * ((scores * along).sum(dim=1, keepdim=True) - scores * along + entering * other)
    normalised = bool(((totals - totals.mean()).abs() <= SAME * totals.mean()).all())
    if normalised:
        shared, unchosen = scores.sum(dim=1, keepdim=True) / (scores.sum(dim=1, keepdim=True) - scores + entering), torch.zeros_like(among)
    else:
        without = 1 / (1 - among).clamp(min=torch.finfo(torch.float32).eps)
        shared, unchosen = without.gather(1, index), before * (without - 1)
    return unchosen.scatter(1, index, left * shared - before)


@contextmanager
def routed_calls(block: nn.Module, family: Family) -> Iterator[list[RoutedCall]]:
    """What the block's experts are called with, for as long as it lasts; gradients flow through them as ever."""
    assert family.mixture is not None
    experts = block.get_submodule(family.mixture.experts)
    stock, before, calls = experts.forward, experts.__dict__.get("forward"), list[RoutedCall]()
    with logits_noted(block, family) as logits:

        def forward(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            outputs = apart(stock, hidden, index)
            total = (outputs * weights[..., None].to(outputs.dtype)).sum(dim=1).to(hidden.dtype)
            scores = logits[0].reshape(len(index), -1).float().softmax(-1)
            following = scores.scatter(1, index, -1.0).argmax(dim=1)
            with torch.no_grad():
                other = apart(stock, hidden, following[:, None])[:, 0]
            calls.append(RoutedCall(index, weights.detach(), following, scores, outputs.detach(), other, total))
            return total

        experts.forward = forward
        try:
            yield calls
        finally:
            del experts.forward
            if before is not None:
                experts.forward = before


def per_sequence(values: torch.Tensor, sequences: int) -> torch.Tensor:
    """Σ over the tokens of each sequence, shape (B, E); values (T, E), sequence after sequence."""
    return values.reshape(sequences, -1, values.shape[-1]).sum(dim=1)
