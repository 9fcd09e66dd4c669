"""Closed-form update of a reader: the remaining inputs reproduce, as well as they can, what all inputs did."""

from __future__ import annotations

import torch

from pipeline.prune.kronecker.factors import Damped


def least_squares(
    weight: torch.Tensor,
    gram: torch.Tensor,
    kept: torch.Tensor,
    damping: float,
    total: torch.Tensor | None = None,
    tokens: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Minimises Σ ‖W x − W' x_kept‖² + λ ‖W' − W_kept‖² over W'; λ = damping × mean diagonal of the kept Gram matrix.

    The ridge pulls towards the weights as they were, so infinite damping changes nothing. With W_r and G_rk the
    removed columns and Gram block, W' = W_k + W_r G_rk (G_kk + λ)⁻¹. Where the reader has a bias, pass ``total`` and
    ``tokens``: the Gram matrix is centred first and the bias takes up the means.

    Args:
        weight: reader's weight, shape (R, C).
        gram: Σ x xᵀ over tokens, shape (C, C).
        kept: ascending kept input indices, shape (K,).
        damping: relative ridge, > 0.
        total: Σ x over tokens, shape (C,), with ``tokens``, for a reader with bias.

    Returns:
        The new weight, shape (R, K), fp32, and what to add to the bias, shape (R,), or None.
    """
    removed = others(kept, len(gram))
    mean = total.double() / tokens if total is not None else None
    if mean is not None:
        gram = gram.double() - tokens * torch.outer(mean, mean)
    weight = weight.double()
    across = weight[:, removed] @ gram[removed][:, kept].double()
    correction = torch.cholesky_solve(across.T, Damped.by(gram[kept][:, kept], damping).root()).T
    updated = weight[:, kept] + correction
    if mean is None:
        return updated.float(), None
    shift = weight[:, removed] @ mean[removed] - correction @ mean[kept]
    return updated.float(), shift.float()


def others(kept: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of the indices below ``count`` that are not named, shape (count,)."""
    removed = torch.ones(count, dtype=torch.bool, device=kept.device)
    removed[kept] = False
    return removed
