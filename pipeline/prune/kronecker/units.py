"""Units that two projections share: what removing one costs on the side that reads it.

The rows that write a unit matter only through the columns that read it. So the rise of the loss when these columns go,
under the reader's own factors, is that of removing the whole unit; the writers add nothing to it.
"""

from __future__ import annotations

import torch

from pipeline.prune.kronecker.costs import conditional_blocks, marginal_blocks, unit_costs
from pipeline.prune.kronecker.factors import Damped, constant_eliminated, live_columns, principal
from pipeline.prune.kronecker.projection import Variant


def coupled_costs(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    width: int,
    damping: float,
    variant: Variant = Variant.SURGEON,
    mean: torch.Tensor | None = None,
) -> torch.Tensor:
    """½ tr(G W_c ([A⁻¹]_cc)⁻¹ W_cᵀ) per unit c of the reader's columns, shape (C / width,), fp64; 0 where all of it is dead.

    Args:
        weight: of the reader, shape (R, C).
        inputs, outputs: its factors A (C, C) and G (R, R).
        width: columns of a unit.
        damping: of A, in units of its mean diagonal.
        variant: ``surgeon``, or ``k_obd``: A_cc instead of ([A⁻¹]_cc)⁻¹.
        mean: of the inputs, shape (C,), where the reader has a bias, which then adapts with the columns that stay.
    """
    live = live_columns(weight, inputs).view(-1, width).any(1)
    if not live.any():  # as in a block whose reader is all zeros
        return torch.zeros(len(live), dtype=torch.float64, device=weight.device)
    columns = live.repeat_interleave(width)
    left = principal(inputs, columns)
    if variant is Variant.SURGEON:
        factor = Damped.by(left, damping) if mean is None else constant_eliminated(left, mean[columns], damping)
        blocks = conditional_blocks(factor, width)
    else:
        blocks = marginal_blocks(left, width)
    costs = torch.zeros(len(live), dtype=torch.float64, device=weight.device)
    costs[live] = unit_costs(weight[:, columns], outputs, blocks)
    return costs
