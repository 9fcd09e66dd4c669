"""Least squares towards the dense model: the readers of a pruned block also make up for what the blocks before it lost.

Ours. Like the output-matching of sequential pruners (SparseGPT's order, arXiv 2301.00774) the inputs are those that the
pruned blocks give; unlike them the target lies between the reader's own output and what brings the residual stream back
to the dense model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.calibrate.statistics import add_upper_gram


@dataclass
class Pull:
    """Weighted sums over tokens of a reader's inputs x (C wide) and of how far the residual stream lags behind, d (R wide).

    Attributes:
        upper: upper triangle of Σ w x xᵀ, shape (C, C).
        cross: Σ w d xᵀ, shape (R, C).
        inputs, lag: Σ w x and Σ w d.
        weight: Σ w.
    """

    upper: torch.Tensor
    cross: torch.Tensor
    inputs: torch.Tensor
    lag: torch.Tensor
    weight: float = 0.0

    @classmethod
    def zeros(cls, rows: int, columns: int, device: torch.device) -> Pull:
        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(empty(columns, columns), empty(rows, columns), empty(columns), empty(rows))

    def add(self, inputs: torch.Tensor, lag: torch.Tensor, weight: torch.Tensor) -> None:
        """Adds tokens: inputs (T, C), lag (T, R), weight (T,)."""
        scaled = inputs.float() * weight.sqrt()[:, None]
        lagging = lag.float() * weight.sqrt()[:, None]
        add_upper_gram(self.upper, scaled)
        self.cross.addmm_(lagging.T, scaled)
        self.inputs += (inputs.float() * weight[:, None]).sum(0)
        self.lag += (lag.float() * weight[:, None]).sum(0)
        self.weight += weight.sum(dtype=torch.float64).item()

    def gram(self) -> torch.Tensor:
        """Σ w x xᵀ, shape (C, C)."""
        return self.upper.triu() + self.upper.triu(1).T


def token_weights(residual: torch.Tensor) -> torch.Tensor:
    """1 / mean square of the residual stream per token, shape (T,); ``residual`` is (T, H).

    The norm before the next projection divides by that, so an error counts relative to it. Without the weight a few
    tokens with massive activations decide the fit.
    """
    return 1 / residual.float().square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)


def towards_dense(
    weight: torch.Tensor, pull: Pull, kept: torch.Tensor, share: float, damping: float, biased: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Minimises Σ w ‖W x + share · d − W' x_kept‖² + λ ‖W' − W_kept‖² over W'; λ = damping × mean diagonal of the kept Gram.

    W' = W_k + (W_r G_rk + share · D_k)(G_kk + λ)⁻¹ with removed columns r, G = Σ w x xᵀ and D = Σ w d xᵀ.

    Args:
        weight: the reader's weight, shape (R, C).
        pull: sums over tokens.
        kept: ascending kept input indices, shape (K,).
        share: how much of the lag is aimed at, 0 (own output) to 1 (the dense residual stream).
        damping: relative ridge, > 0.
        biased: the reader has a bias, which takes up the means.

    Returns:
        The new weight, shape (R, K), fp32, and what to add to the bias, shape (R,), or None.
    """
    weight, gram, cross = weight.double(), pull.gram().double(), share * pull.cross.double()
    mean, lag = pull.inputs.double() / pull.weight, share * pull.lag.double() / pull.weight
    if biased:
        gram = gram - pull.weight * torch.outer(mean, mean)
        cross = cross - pull.weight * torch.outer(lag, mean)
    removed = torch.ones(gram.shape[0], dtype=torch.bool, device=gram.device)
    removed[kept] = False
    stay = gram[kept][:, kept]
    ridge = damping * stay.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky(stay + ridge * torch.eye(len(kept), dtype=stay.dtype, device=stay.device))
    target = weight[:, removed] @ gram[removed][:, kept] + cross[:, kept]
    correction = torch.cholesky_solve(target.T, factor).T
    if not biased:
        return (weight[:, kept] + correction).float(), None
    shift = weight[:, removed] @ mean[removed] + lag - correction @ mean[kept]
    return (weight[:, kept] + correction).float(), shift.float()
