"""Losses over positions and a vocabulary that are never held at once: part by part, with the gradient made on the way.

The idea is that of fused losses (Liger-Kernel, arXiv 2410.10989; Cut Cross-Entropy, arXiv 2411.09009): what backward needs of a
part is its gradient by the states and by the head, which are small, so logits go before the next part's are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

LOGITS_AT_ONCE = 2**23  # of one model; a part has as many positions as that allows


class Judged(NamedTuple):
    """What one part gives.

    Attributes:
        logits: (P, vocabulary), with their graph back to the states.
        loss: its sum over the part's positions; scalar, without a graph.
        gradient: of that sum by the logits, shape of ``logits``.
    """

    logits: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor


Judge = Callable[[torch.Tensor, slice], Judged]


def positions_at_once(vocabulary: int) -> int:
    """How many positions a part has."""
    return max(16, LOGITS_AT_ONCE // vocabulary)


def mean_in_parts(judge: Judge, states: torch.Tensor, at_once: int, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Mean loss over positions; scalar, differentiable by the states and by the parameters of the head.

    Args:
        judge: of a part's states (P, H) and where they lie among all.
        states: what enters the head, (positions, H).
        at_once: positions of a part.
        parameters: of the head, that get gradients.
    """
    if torch.is_grad_enabled():
        found: torch.Tensor = _MeanInParts.apply(judge, at_once, states, *parameters)  # type: ignore[no-untyped-call]
        return found
    parts = (slice(start, start + at_once) for start in range(0, len(states), at_once))
    return (torch.stack([judge(states[part], part).loss for part in parts]).sum() / len(states)).float()


class _MeanInParts(torch.autograd.Function):
    """Forward makes the gradients, backward hands them on."""

    @staticmethod
    def forward(ctx: Any, judge: Judge, at_once: int, states: torch.Tensor, *parameters: torch.nn.Parameter) -> torch.Tensor:
        """See ``mean_in_parts``."""
        by_states, count = ctx.needs_input_grad[2], len(states)
        found = torch.zeros_like(states) if by_states else None
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        total = states.new_zeros((), dtype=torch.float64)
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            given = states.detach()[part].requires_grad_(by_states)
            with torch.enable_grad():
                judged = judge(given, part)
            total += judged.loss
            wanted = [*([given] if by_states else []), *parameters]
            if wanted:
                gradients = list(torch.autograd.grad(judged.logits, wanted, judged.gradient.div_(count)))
                if found is not None:
                    found[part] = gradients.pop(0)
                for kept, gradient in zip(sums, gradients, strict=True):
                    kept += gradient
        ctx.save_for_backward(*([found] if found is not None else []), *sums)
        ctx.by_states = by_states
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[Any, ...]:
        """Scaled by what comes from above."""
        kept = list(ctx.saved_tensors)
        states = kept.pop(0) * outer[0] if ctx.by_states else None
        return None, None, states, *(gradient * outer[0] for gradient in kept)
