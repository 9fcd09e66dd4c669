"""Bias compensation (FLAP, arXiv 2312.11983, section 3.4): the reader's bias takes up what removed inputs gave on average."""

from __future__ import annotations

import torch


def bias_shift(weight: torch.Tensor, mean: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """W[:, removed] · mean[removed], shape (R,), fp32: with it, the mean output over the calibration tokens stays as it was.

    It is added to a bias that is there already; the released code overwrites that.

    Args:
        weight: reader's weight, shape (R, C).
        mean: mean of its inputs over tokens, shape (C,).
        removed: indices of the inputs that go.
    """
    return (weight[:, removed].double() @ mean[removed].double()).float()
