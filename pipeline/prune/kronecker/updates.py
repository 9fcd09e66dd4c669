"""The change of the weights that stay which costs least when given weights go (LLM Surgeon, arXiv 2312.17244, section 3.3).

All of it minimises ½ tr(G D A Dᵀ) over the change D of the weight, with both factors damped.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import torch

from pipeline.prune.kronecker.factors import Damped, lower_root

MOST_TOGETHER = 2000  # weights whose correlations are solved for at once; the published value


class Correlation(StrEnum):
    """How the corrections for rows and for columns are put together."""

    JOINT = "joint"  # columns after rows: the optimum for all of them
    SUM = "published_sum"  # both from the weight as it was: the published default
    INDEPENDENT = "independent"  # every row and column as if it went alone


def structured_update(
    weight: torch.Tensor,
    inputs: Damped,
    outputs: Damped,
    columns: torch.Tensor,
    rows: torch.Tensor,
    correlation: Correlation = Correlation.JOINT,
) -> torch.Tensor:
    """The weight without the given rows and columns, zeros in their places, shape (R, C), fp64.

    With k what stays and r, c what goes, T = W_k + G_kk⁻¹ G_kr W_r takes up the rows and W′ = T_k + T_c A_ck A_kk⁻¹ the
    columns: the exact minimiser for both, since taking up columns acts from the right and rows from the left.

    Args:
        weight: shape (R, C).
        inputs, outputs: A (C, C) and G (R, R).
        columns, rows: what goes, masks of shape (C,) and (R,).
        correlation: how the two are put together.
    """
    exact = weight.double()
    alone = correlation is Correlation.INDEPENDENT
    by_rows = exact + _taken_up(exact.T, outputs, rows, alone).T
    start = by_rows if correlation is Correlation.JOINT else exact
    updated = by_rows + _taken_up(start, inputs, columns, alone)
    updated[rows] = 0
    updated[:, columns] = 0
    return updated


def _taken_up(weight: torch.Tensor, factor: Damped, gone: torch.Tensor, alone: bool) -> torch.Tensor:
    """What the columns that stay take up of those that go; zeros there, shape as ``weight`` (R, C)."""
    change = torch.zeros_like(weight)
    if gone.any() and not gone.all():
        change[:, ~gone] = (_alone if alone else _together)(weight, factor, gone)
    return change


def _together(weight: torch.Tensor, factor: Damped, gone: torch.Tensor) -> torch.Tensor:
    """W_c A_ck A_kk⁻¹, shape (R, kept)."""
    across = factor.matrix[gone][:, ~gone].double()
    return torch.cholesky_solve((weight[:, gone] @ across).T, factor.root(~gone)).T


def _alone(weight: torch.Tensor, factor: Damped, gone: torch.Tensor) -> torch.Tensor:
    """−Σ over c of w_c [A⁻¹]_ck / [A⁻¹]_cc, shape (R, kept)."""
    turned = factor.inverse()
    return -(weight[:, gone] / turned.diagonal()[gone]) @ turned[gone][:, ~gone]


def chunks_of(mask: torch.Tensor, most: int = MOST_TOGETHER) -> Iterator[slice]:
    """Consecutive rows that together lose at most ``most`` weights; a row that loses more stands alone.

    Args:
        mask: what goes, shape (R, C), bool.
        most: 0 is everything at once.
    """
    start = held = 0
    for row, losing in enumerate(mask.sum(1).tolist()):
        if most and held and held + losing > most:
            yield slice(start, row)
            start, held = row, 0
        held += losing
    if held:
        yield slice(start, len(mask))


def element_update(
    weight: torch.Tensor,
    mask: torch.Tensor,
    inputs_inverse: torch.Tensor,
    outputs_inverse: torch.Tensor,
    most: int = MOST_TOGETHER,
    cumulative: bool = True,
) -> torch.Tensor:
    """The weight with zeros at ``mask`` and the best change elsewhere, exact within every chunk of rows; fp64.

    For the weights q of a chunk the multipliers X solve (G⁻¹ ∘ A⁻¹ between q) x = w_q and the weight changes by −G⁻¹ X A⁻¹.
    X is zero outside the chunk's rows, so that this costs rows × C² instead of R × C².

    Args:
        weight: shape (R, C).
        mask: what goes, shape (R, C), bool; weights that are zero already and shall stay so belong to it.
        inputs_inverse, outputs_inverse: damped A⁻¹ (C, C) and G⁻¹ (R, R).
        most: weights of one chunk.
        cumulative: a chunk sees the changes of those before it; otherwise all start from ``weight``.
    """
    right, left = inputs_inverse.double(), outputs_inverse.double()
    before = weight.double()
    updated = before.clone()
    for chunk in chunks_of(mask, most):
        seen = updated if cumulative else before
        multipliers = _multipliers(seen[chunk], mask[chunk], right, left[chunk, chunk])
        updated -= left[:, chunk] @ (multipliers @ right)
    return updated.masked_fill_(mask, 0)


def _multipliers(weight: torch.Tensor, mask: torch.Tensor, right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """X of one chunk, zeros outside its mask; shapes of ``weight`` and ``mask`` are (rows, C)."""
    rows, columns = mask.nonzero(as_tuple=True)
    between = left[rows][:, rows].mul_(right[columns][:, columns])
    solved = torch.cholesky_solve(weight[mask][:, None], lower_root(between))
    spread = torch.zeros_like(weight)
    spread[mask] = solved.flatten()
    return spread
