"""Divergence from a teacher of whom only two things per position are kept: what its predictions expect of the student's head, and their entropy.

Where the student's head W is linear and frozen, with logits z = W h, the teacher's chances p and τ = 1,

    KL(p ‖ softmax(z)) = Σ p log p − h · (Wᵀ p) + log Σ exp(z),        its gradient by h: Wᵀ softmax(z) − Wᵀ p.

Wᵀ p has as many numbers as h. With it and Σ p log p on disk, a window that is read again costs the teacher's head no product: two products
with the head a position instead of three. Temperatures divide logits and multiply the sum by τ², as in ``divergence.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from pipeline.recover.losses.divergence import log_denominator
from pipeline.recover.losses.head import Head
from pipeline.recover.losses.parts import positions_at_once

SAME = 1e-5  # of the largest logit, fp32


def is_plain(head: Head) -> bool:
    """Whether a model's logits are its frozen head's product and nothing else, as far as a few states show."""
    if head.trained:
        return False
    weight = head.weight.detach()
    states = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        found, product = head.logits(states), linear(states, weight)
    return bool((found - product).abs().max() <= SAME * product.abs().max())


@torch.no_grad()
def expectations(taught: torch.Tensor, teacher: Head, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of what enters the teacher's head, (P, H'): Wᵀ p and Σ p log p beside it, (P, H + 1), fp32.

    Args:
        taught: states.
        teacher: its head, with whatever it does to logits.
        weight: the student's head W, (vocabulary, H).
        temperature: τ.
    """
    found = []
    for states in taught.split(positions_at_once(weight.shape[0])):
        logits = teacher.logits(states).float() / temperature
        chances = logits.softmax(-1)
        entropy = torch.linalg.vecdot(chances, logits) - log_denominator(logits, chances)
        found.append(torch.cat((chances @ weight.float(), entropy[:, None]), dim=1))
    return torch.cat(found)


def expected_divergence(states: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean divergence over positions times τ²; scalar, differentiable by the states.

    Args:
        states: what enters the student's head, (P, H).
        kept: by ``expectations``, (P, H + 1).
        weight: W.
        temperature: τ.
    """
    found: torch.Tensor = _Expected.apply(states, kept, weight, temperature)  # type: ignore[no-untyped-call]
    return found


class _Expected(torch.autograd.Function):
    """Part by part; the gradient is made with the loss where it will be asked for."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
        """See ``expected_divergence``."""
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        total = states.new_zeros((), dtype=torch.float64)
        at_once = positions_at_once(weight.shape[0])
        for start in range(0, len(states), at_once):
            part = slice(start, start + at_once)
            given, expected, entropy = states[part], kept[part, :-1], kept[part, -1]
            logits = linear(given, weight.to(given.dtype)).float() / temperature
            chances = logits.softmax(-1)
            reached = torch.linalg.vecdot(given.float(), expected) / temperature
            total += (entropy - reached + log_denominator(logits, chances)).double().sum() * temperature**2
            if gradient is not None:
                gradient[part] = (chances @ weight.float()).sub_(expected).mul_(temperature / len(states)).to(states.dtype)
        ctx.save_for_backward(*([] if gradient is None else [gradient]))
        return (total / len(states)).float()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[Any, ...]:
        """Scaled by what comes from above."""
        return ctx.saved_tensors[0] * outer[0], None, None, None
