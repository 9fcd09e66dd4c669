"""Least squares towards the dense model: the readers of a pruned block also make up for what the blocks before it lost.

Ours. Like the output-matching of sequential pruners (SparseGPT's order, arXiv 2301.00774) the inputs are those that the
pruned blocks give; unlike them the target lies between the reader's own output and what brings the residual stream back
to the dense model's.

What the reader W' of the units that stay has to write besides W_k x_k is t = W_r x_r + share · d: what the units that go wrote, and a
share of the lag d behind the dense model's stream. So the correction X = W' − W_k is a ridge regression of t on x_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.calibrate.statistics import add_upper_gram
from pipeline.common.errors import TrimlineError
from pipeline.prune.kronecker.factors import Damped

DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # that ``best_damping`` chooses from


@dataclass
class Pull:
    """Weighted sums over tokens of the inputs x that stay (K wide) and of what is missing besides, t (R wide).

    Attributes:
        upper: upper triangle of Σ w x xᵀ, shape (K, K).
        cross: Σ w t xᵀ, shape (R, K).
        inputs, missing: Σ w x and Σ w t.
        weight: Σ w.
    """

    upper: torch.Tensor
    cross: torch.Tensor
    inputs: torch.Tensor
    missing: torch.Tensor
    weight: float = 0.0

    @classmethod
    def zeros(cls, rows: int, columns: int, device: torch.device) -> Pull:
        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(empty(columns, columns), empty(rows, columns), empty(columns), empty(rows))

    def add(self, inputs: torch.Tensor, missing: torch.Tensor, weight: torch.Tensor) -> None:
        """Adds tokens: inputs (T, K), missing (T, R), weight (T,)."""
        root = weight.sqrt()[:, None]
        scaled, wanted = inputs.float() * root, missing.float() * root
        add_upper_gram(self.upper, scaled)
        self.cross.addmm_(wanted.T, scaled)
        self.inputs.addmv_(scaled.T, root[:, 0])
        self.missing.addmv_(wanted.T, root[:, 0])
        self.weight += weight.sum(dtype=torch.float64).item()

    def __add__(self, other: Pull) -> Pull:
        """Over the tokens of both."""
        return Pull(
            self.upper + other.upper,
            self.cross + other.cross,
            self.inputs + other.inputs,
            self.missing + other.missing,
            self.weight + other.weight,
        )

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the inputs, and of what is missing; fp64."""
        return self.inputs.double() / self.weight, self.missing.double() / self.weight

    def gram(self) -> torch.Tensor:
        """Σ w x xᵀ, shape (K, K)."""
        return self.upper.triu() + self.upper.triu(1).T


def towards_dense(weight: torch.Tensor, pull: Pull, damping: float, biased: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Minimises Σ w ‖W_k x + t − W' x‖² + λ ‖W' − W_k‖² over W'; λ = damping × mean diagonal of Σ w x xᵀ.

    W' = W_k + (Σ w t xᵀ)(Σ w x xᵀ + λ)⁻¹.

    Args:
        weight: W_k, the reader's columns that stay, shape (R, K).
        pull: sums over tokens.
        damping: relative ridge, > 0.
        biased: the reader has a bias, which takes up the means.

    Returns:
        The new weight, shape (R, K), fp32, and what to add to the bias, shape (R,), or None.
    """
    system = _System.of(pull, biased)
    correction = system.correction(damping * system.scale())
    updated = (weight.double() + correction).float()
    if not biased:
        return updated, None
    mean, missing = pull.means()
    return updated, (missing - correction @ mean).float()


def best_damping(halves: tuple[Pull, Pull], biased: bool = False, near: float | None = None) -> float:
    """Of ``DAMPINGS`` the one whose fits on either half of the tokens leave the least error on the other half.

    A ridge that fits a half fits the whole: what it stands against, the noise of a token over the size of the
    correction, is the same for any number of them. So it is tried as it would be for the whole.

    Args:
        halves: sums over either half of the tokens.
        biased: as of ``towards_dense``.
        near: where to begin. From there it goes downhill while a neighbour errs less, since the error has one valley in all that was
            seen; without, all are tried.
    """
    systems = [_System.of(half, biased, torch.float32) for half in halves]
    scale = systems[0].scale() + systems[1].scale()
    tried: dict[int, float] = {}

    def error(place: int) -> float:
        if place not in tried:
            fits = [system.correction(DAMPINGS[place] * scale) for system in systems]
            tried[place] = systems[1].error(fits[0]) + systems[0].error(fits[1])
        return tried[place]

    if near is None:
        return DAMPINGS[min(range(len(DAMPINGS)), key=error)]
    place = DAMPINGS.index(near)
    while True:
        better = min(range(max(0, place - 1), min(len(DAMPINGS), place + 2)), key=error)
        if better == place:
            return DAMPINGS[place]
        place = better


@dataclass(frozen=True)
class _System:
    """The normal equations of a correction X: X G = T.

    Attributes:
        gram: G = Σ w x xᵀ, shape (K, K).
        target: T = Σ w t xᵀ, shape (R, K).
    """

    gram: torch.Tensor
    target: torch.Tensor

    @classmethod
    def of(cls, pull: Pull, biased: bool, dtype: torch.dtype = torch.float64) -> _System:
        """In fp64 to solve; fp32, in which the sums are, does to compare ridges a factor of three apart."""
        gram, target = pull.gram(), pull.cross
        if biased:
            mean, missing = pull.means()
            gram = gram.double() - pull.weight * torch.outer(mean, mean)
            target = target.double() - pull.weight * torch.outer(missing, mean)
        return cls(gram.to(dtype), target.to(dtype))

    def scale(self) -> float:
        """What a relative ridge is relative to."""
        return max(self.gram.diagonal().double().mean().item(), torch.finfo(torch.float64).tiny)

    def correction(self, ridge: float) -> torch.Tensor:
        """T (G + λ)⁻¹, shape (R, K); in fp64 where the system's own dtype is not enough."""
        try:
            root = Damped(self.gram, ridge).root(dtype=self.gram.dtype)
        except TrimlineError:
            if self.gram.dtype == torch.float64:
                raise
            root = Damped(self.gram, ridge).root().to(self.gram.dtype)
        return torch.cholesky_solve(self.target.T, root).T

    def error(self, correction: torch.Tensor) -> float:
        """Squared error on these tokens, but for what no correction changes."""
        return (correction * torch.addmm(self.target, correction, self.gram, beta=-2)).sum(dtype=torch.float64).item()
