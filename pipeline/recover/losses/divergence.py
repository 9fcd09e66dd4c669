"""Divergences and distances, of whole tensors and of parts of the positions with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.recover.losses.parts import Judged


def prediction_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) of the softened predictions, mean over tokens, times temperature²; nats, scalar.

    The factor keeps gradients of one size whatever the temperature (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
        student, teacher: logits, shape (..., vocabulary).
        temperature: divides both.
    """
    expected = (teacher.float() / temperature).log_softmax(-1)
    found = (student.float() / temperature).log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean() * temperature**2


def judged_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> Judged:
    """``prediction_divergence`` summed over the positions of a part, with its gradient τ · (softmax(z / τ) − softmax(z_dense / τ)).

    The logarithm of a softmax's denominator is z − log softmax(z) at its largest entry, so each model takes one exponential an entry.

    Args:
        student: logits (P, vocabulary), with a graph or without.
        teacher: logits (P, vocabulary); is overwritten.
        temperature: divides both.
    """
    with torch.no_grad():
        found, expected = student.detach().float(), teacher.float()
        if temperature != 1.0:
            found, expected = found / temperature, expected.div_(temperature)
        q, p = found.softmax(-1), expected.softmax(-1)
        normal = log_denominator(found, q) - log_denominator(expected, p)
        loss = (torch.linalg.vecdot(p, expected.sub_(found)) + normal).double().sum() * temperature**2
        return Judged(student, loss, q.sub_(p).mul_(temperature).to(student.dtype))


def judged_text(logits: torch.Tensor, targets: torch.Tensor) -> Judged:
    """Cross-entropy of the next tokens, summed over the positions of a part, with its gradient; a target of −1 counts for nothing.

    Args:
        logits: (P, vocabulary), with a graph or without.
        targets: token ids (P,).
    """
    with torch.no_grad():
        counted = targets >= 0
        rows, at = counted.nonzero()[:, 0], targets[counted]
        gradient = logits.detach().float().log_softmax(-1)
        loss = -gradient[rows, at].double().sum()
        gradient.exp_()[~counted] = 0.0
        gradient[rows, at] -= 1.0
        return Judged(logits, loss, gradient.to(logits.dtype))


def state_distance(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over blocks and tokens of ‖h' − h‖² / ‖h‖²; scalar.

    Relative to each token, because the residual stream of a few tokens is a hundred times longer than that of the others.

    Args:
        student, teacher: outputs h', h of blocks that belong together, shape (..., H) each.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1)).mean() for s, t in pairs]).mean()


def log_denominator(logits: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """log Σ exp(z) per row, of z and softmax(z)."""
    return logits.amax(-1) - chances.amax(-1).log()
