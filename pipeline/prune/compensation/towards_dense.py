"""Least squares towards the dense model: the readers of a pruned block also make up for what the blocks before it lost.

Ours. Like the output-matching of sequential pruners (SparseGPT's order, arXiv 2301.00774) the inputs are those that the
pruned blocks give; unlike them the target lies between the reader's own output and what brings the residual stream back
to the dense model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.calibrate.statistics import add_upper_gram
from pipeline.prune.compensation.least_squares import others
from pipeline.prune.kronecker.factors import Damped

DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # that ``best_damping`` chooses from


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

    def of(self, columns: torch.Tensor) -> Pull:
        """The same of some inputs alone, by ascending number."""
        return Pull(self.upper[columns][:, columns], self.cross[:, columns], self.inputs[columns], self.lag, self.weight)

    def __add__(self, other: Pull) -> Pull:
        """Over the tokens of both."""
        return Pull(
            self.upper + other.upper, self.cross + other.cross, self.inputs + other.inputs, self.lag + other.lag, self.weight + other.weight
        )

    def means(self, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the inputs, and of that share of the lag; fp64."""
        return self.inputs.double() / self.weight, share * self.lag.double() / self.weight

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
    weight, system = weight.double(), _System.of(weight, pull, kept, share, biased)
    correction = system.correction(damping * system.scale())
    if not biased:
        return (weight[:, kept] + correction).float(), None
    mean, lag = pull.means(share)
    removed = others(kept, weight.shape[1])
    shift = weight[:, removed] @ mean[removed] + lag - correction @ mean[kept]
    return (weight[:, kept] + correction).float(), shift.float()


def best_damping(weight: torch.Tensor, halves: tuple[Pull, Pull], kept: torch.Tensor, share: float, biased: bool = False) -> float:
    """Of ``DAMPINGS`` the one whose fits on either half of the tokens leave the least error on the other half.

    A ridge that fits a half fits the whole: what it stands against, the noise of a token over the size of the
    correction, is the same for any number of them. So it is tried as it would be for the whole.
    """
    systems = [_System.of(weight, half, kept, share, biased) for half in halves]
    scale = systems[0].scale() + systems[1].scale()

    def error(damping: float) -> float:
        fits = [system.correction(damping * scale) for system in systems]
        return systems[1].error(fits[0]) + systems[0].error(fits[1])

    return min(DAMPINGS, key=error)


@dataclass(frozen=True)
class _System:
    """The normal equations of a correction X of the kept columns: X G_kk = T.

    Attributes:
        gram: G_kk, shape (K, K), fp64.
        target: T = W_r G_rk + share · D_k, shape (R, K), fp64.
    """

    gram: torch.Tensor
    target: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, pull: Pull, kept: torch.Tensor, share: float, biased: bool) -> _System:
        gram, cross = pull.gram().double(), share * pull.cross.double()
        if biased:
            mean, lag = pull.means(share)
            gram = gram - pull.weight * torch.outer(mean, mean)
            cross = cross - pull.weight * torch.outer(lag, mean)
        removed = others(kept, len(gram))
        return cls(gram[kept][:, kept], weight.double()[:, removed] @ gram[removed][:, kept] + cross[:, kept])

    def scale(self) -> float:
        """What a relative ridge is relative to."""
        return max(self.gram.diagonal().mean().item(), torch.finfo(torch.float64).tiny)

    def correction(self, ridge: float) -> torch.Tensor:
        """T (G_kk + λ)⁻¹, shape (R, K)."""
        return torch.cholesky_solve(self.target.T, Damped(self.gram, ridge).root()).T

    def error(self, correction: torch.Tensor) -> float:
        """Squared error on these tokens, but for what no correction changes."""
        return (correction * (correction @ self.gram - 2 * self.target)).sum().item()
