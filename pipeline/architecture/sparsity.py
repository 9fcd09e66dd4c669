"""Whether weights have the 2:4 pattern: at least two zeros in every group of four along the axis that a product sums over.

A tensor core's sparse mode skips half of each such group, so the axis matters: a ``torch.nn.Linear`` weight is summed
over its last axis, the right-hand side of an ONNX MatMul over its first.
"""

from __future__ import annotations

import torch

GROUP = 4
ZEROS = 2


def two_four_fraction(weight: torch.Tensor, axis: int = -1) -> float:
    """Share of groups of four along ``axis`` that hold at least two zeros; 1.0 is 2:4 without exception.

    Groups are consecutive and start at index 0. Rows whose length is not a multiple of four cannot be 2:4 anywhere,
    because the hardware has no shorter group.

    Args:
        weight: any number of axes, at least one, any dtype.
        axis: the one that the product sums over.
    """
    length = weight.shape[axis]
    if not weight.numel() or length % GROUP:
        return 0.0
    zeros = (weight == 0).movedim(axis, -1).unflatten(-1, (length // GROUP, GROUP)).sum(-1)
    return (zeros >= ZEROS).double().mean().item()
