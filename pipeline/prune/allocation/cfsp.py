"""CFSP's coarse rule: block importance into the fraction of channels that each block keeps (specified from the code)."""

from __future__ import annotations

import torch

# The released code divides a *sum* over 128 × 1024 tokens by 10 000. Stated for the mean, the same sharpness is
# 131 072 / 10 000 per unit of mean angular distance, for any number of tokens.
SHARPNESS_PER_MEAN_DISTANCE = 128 * 1024 / 10_000
SQUASH_MARGIN = 1.05


def retained_fractions(mean_distance: torch.Tensor, remove: float, sharpness: float = 1.0) -> torch.Tensor:
    """Fraction of channels kept per block, shape (L,), fp64; their mean is exactly 1 − remove.

    s = sigmoid(sharpness × 13.1072 × (d − mean d)); kept = (1 − remove) × s / mean s. Where the largest would reach
    1, s is squashed about its mean so that it stays below 1 by the authors' margin of 1.05.

    Args:
        mean_distance: mean angular distance of each block, shape (L,).
        remove: fraction of all channels that goes, in [0, 1).
        sharpness: CFSP's ``a``; 0 keeps the same in every block.
    """
    s = importance_weights(mean_distance, sharpness)
    kept = (1 - remove) * s / s.mean()
    if kept.max() >= 1 and s.max() > s.mean():
        squash = s.mean() * (1 / (1 - remove) - 1) / (s.max() - s.mean()) / SQUASH_MARGIN
        s = s.mean() + squash * (s - s.mean())
        kept = (1 - remove) * s / s.mean()
    return kept


def importance_weights(mean_distance: torch.Tensor, sharpness: float = 1.0) -> torch.Tensor:
    """s = sigmoid(sharpness × 13.1072 × (d − mean d)) per block, shape (L,), fp64, in (0, 1)."""
    distance = mean_distance.double()
    return torch.sigmoid(sharpness * SHARPNESS_PER_MEAN_DISTANCE * (distance - distance.mean()))
