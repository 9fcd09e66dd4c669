"""What it costs to remove something from a projection, in units of the loss (LLM Surgeon, arXiv 2312.17244, section 3.2).

A curvature *along* one row or column is either conditional, 1 / [M⁻¹]ᵢᵢ (what is left when everything else adapts: optimal
brain surgeon), or marginal, Mᵢᵢ (nothing adapts: optimal brain damage). The costs below take either.
"""

from __future__ import annotations

import torch

from pipeline.prune.kronecker.factors import Damped, inverse_blocks, lower_root


def conditional_blocks(factor: Damped, width: int) -> torch.Tensor:
    """([M⁻¹]_cc)⁻¹ for runs c of ``width`` indices, of the damped factor, shape (n / width, width, width), fp64."""
    blocks = inverse_blocks(factor.root(), width)
    return 1 / blocks if width == 1 else torch.cholesky_inverse(lower_root(blocks))


def marginal_blocks(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """M_cc, undamped, for runs c of ``width`` indices, shape (n / width, width, width), fp64."""
    units = torch.arange(len(matrix), device=matrix.device).view(-1, width)
    return matrix[units[:, :, None], units[:, None]].double()


def conditional(factor: Damped) -> torch.Tensor:
    """1 / [M⁻¹]ᵢᵢ of the damped factor, shape (n,), fp64."""
    return conditional_blocks(factor, 1).flatten()


def marginal(matrix: torch.Tensor) -> torch.Tensor:
    """Mᵢᵢ, undamped, shape (n,), fp64."""
    return matrix.diagonal().double()


def element_costs(weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """½ w² γᵢ αⱼ for every weight, shape (R, C), fp32.

    Args:
        weight: shape (R, C).
        rows: curvature γ along every row, shape (R,); ones where only inputs count (L-OBD).
        columns: curvature α along every column, shape (C,).
    """
    return (weight.double().square() * (rows.double()[:, None] * columns.double() / 2)).float()


def row_costs(weight: torch.Tensor, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """½ (wᵢᵀ A wᵢ) γᵢ for every row, shape (R,), fp64; A undamped, as published."""
    exact = weight.double()
    return (exact @ inputs.double()).mul_(exact).sum(1) * rows.double() / 2


def column_costs(weight: torch.Tensor, outputs: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """½ (wⱼᵀ G wⱼ) αⱼ for every column, shape (C,), fp64; G undamped, as published."""
    return row_costs(weight.T, outputs, columns)


def unit_costs(weight: torch.Tensor, outputs: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """½ tr(G W_c S_c W_cᵀ) for every unit of consecutive columns c, shape (units,), fp64.

    With the conditional S_c = ([A⁻¹]_cc)⁻¹ it is the rise of the loss when all columns of a unit go at once and the others
    adapt, before any other unit goes. For units of one column it is ``column_costs``.

    Args:
        weight: shape (R, units × width).
        outputs: G, undamped, shape (R, R).
        blocks: S, shape (units, width, width).
    """
    exact = weight.double()
    through = (outputs.double() @ exact).unflatten(1, (len(blocks), -1)).movedim(1, 0)  # (units, R, width)
    moments = exact.unflatten(1, (len(blocks), -1)).movedim(1, 0).mT @ through
    return (moments * blocks.double()).sum((1, 2)) / 2


def group_costs(costs: torch.Tensor, zeros: int, group: int) -> torch.Tensor:
    """Sum of the ``zeros`` smallest of every ``group`` consecutive costs of a row, shape (R, C / group)."""
    return costs.unflatten(1, (-1, group)).sort(stable=True).values[..., :zeros].sum(-1)
