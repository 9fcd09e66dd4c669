"""Backward elimination: units of a reader's inputs go one by one, the cheapest first, while the reader of the others is solved for anew.

The error is ½ tr(G E): E is the second moment of what the reader of the units that are left gets wrong, G that of the
loss's gradients at its outputs. One step is that of Optimal Brain Surgeon for a group of columns, with the curvature G ⊗ A
of LLM Surgeon (arXiv 2312.17244); that all go in a row, with exact updates in between, is ours.

What the others make up for is what they have in common with a unit, and that was measured on the dense model: behind blocks that
were cut it holds less. So only a share of the correlations between units may count. With none, the order is that of the
loss of zeroing each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.prune.kronecker.costs import marginal_blocks
from pipeline.prune.kronecker.factors import Damped

AT_ONCE = 96  # columns of updates that wait for one matrix product

STEP = 1e-3  # of a ridge, over which the slope of an error is taken


@dataclass(frozen=True)
class Elimination:
    """The order in which units are best kept.

    Attributes:
        order: units, the one to keep longest first, shape (U,).
        errors: of the best reader of the first k units in that order, for k from 0 to U, shape (U + 1,), fp64.
    """

    order: torch.Tensor
    errors: torch.Tensor

    @property
    def costs(self) -> torch.Tensor:
        """What each unit, by its number, added to the error when it went, shape (U,), fp32."""
        costs = torch.empty(len(self.order), dtype=torch.float32)
        costs[self.order] = (self.errors[:-1] - self.errors[1:]).float()
        return costs


def eliminate(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    width: int,
    damping: float,
    correlation: float = 1.0,
    ridge_counts: bool = False,
) -> Elimination:
    """All units, down to none.

    Args:
        weight: the reader's weight W, shape (R, C).
        inputs: A, second moment of its inputs, shape (C, C).
        outputs: G, second moment of the gradients at its outputs, shape (R, R).
        width: columns per unit.
        damping: λ in units of A's mean diagonal.
        correlation: what A holds between different units is multiplied by it.
        ridge_counts: whether ½ λ tr(G D Dᵀ), of what the reader changes by D, is part of the errors. Units go in an order in which it is,
            since that is what the reader minimises; but it is no loss.
    """
    if correlation < 1:
        units = torch.arange(len(inputs), device=inputs.device) // width
        inputs = torch.where(units[:, None] == units, inputs, correlation * inputs)
    inner = weight.double().T @ outputs.double() @ weight.double()
    ridge = damping * inputs.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny).item()  # inputs may all be zero
    left = _Left(
        Damped(inputs, ridge).inverse().contiguous(), inner.contiguous(), torch.arange(len(inputs) // width, device=inputs.device), width
    )
    gone, costs = [], []
    while len(left.units):
        while not left.is_full:
            unit, cost = left.remove_cheapest()
            gone.append(unit)
            costs.append(cost)
        left = left.without_removed()
    order, errors = torch.tensor(gone[::-1]), torch.tensor([0.0, *costs], dtype=torch.float64).cumsum(0)
    if not ridge_counts:
        steeper = errors_in_order(weight, inputs, outputs, order, width, ridge * (1 + STEP)).flip(0)
        errors = (errors - (steeper - errors) / STEP).cummax(0).values
    return Elimination(order, errors.flip(0))


def errors_in_order(
    weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, order: torch.Tensor, width: int, ridge: float
) -> torch.Tensor:
    """½ tr(G D (A + λ) Dᵀ), D being what the best reader of the first k units changes, for k from 0 to U; shape (U + 1,), fp64.

    With A + λ = L Lᵀ in that order and V = W L it is ½ Σ vⱼᵀ G vⱼ over the columns behind those of the first k: one Cholesky
    factorisation for all sizes. By the envelope theorem its slope over λ is ½ tr(G D Dᵀ), the ridge's part over λ.

    Args:
        weight, inputs, outputs, width: as of ``eliminate``.
        order: of the units, the one to keep longest first.
        ridge: λ itself.
    """
    columns = (order.to(inputs.device)[:, None] * width + torch.arange(width, device=inputs.device)).flatten()
    across = weight.double()[:, columns] @ Damped(inputs[columns][:, columns], ridge).root()
    lost = (across * (outputs.double() @ across)).sum(0).unflatten(0, (-1, width)).sum(1) / 2
    return torch.cat([lost.flip(0).cumsum(0).flip(0), lost.new_zeros(1)]).cpu()


class _Left:
    """What is left of H = (A + λ)⁻¹ and of M = Wᵀ G W, W being the reader that is best for it, shape (C, C) both.

    Removing columns u with P = H_uu and K = P⁻¹ H_u: takes W to W − W_u K, so H to H − Kᵀ H_u: and M to M − Kᵀ M_u: − Nᵀ K with
    N = M_u: − M_uu K. The rows K, H_u:, M_u: and N of what went wait in tables: a row of H or M is brought
    up to date when it is needed, the matrices only every so often, in one product.
    """

    def __init__(self, inverse: torch.Tensor, inner: torch.Tensor, units: torch.Tensor, width: int) -> None:
        self.inverse, self.inner, self.units, self.width = inverse, inner, units, width
        self._left = torch.ones(len(units), dtype=torch.bool, device=units.device)
        self._inverse_blocks, self._inner_blocks = marginal_blocks(inverse, width), marginal_blocks(inner, width)
        self._most = min(max(1, AT_ONCE // width), len(units)) * width
        self._gains, self._rows, self._inners, self._others = inverse.new_empty(4, self._most, len(inverse))
        self._waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether no more removals can wait."""
        return self._waiting == self._most

    def _costs(self) -> torch.Tensor:
        """½ tr(P⁻¹ M_uu) per unit; infinite for what is gone."""
        if self.width == 1:
            costs = (self._inner_blocks / self._inverse_blocks).flatten()
        else:
            # One by one: torch's LU of several matrices of 192 or more fails on two threads and more (2.13 with MKL).
            pairs = zip(self._inverse_blocks, self._inner_blocks, strict=True)
            costs = torch.stack([torch.linalg.solve(inverse, inner).trace() for inverse, inner in pairs])
        return torch.where(self._left, 0.5 * costs, torch.inf)

    def remove_cheapest(self) -> tuple[int, float]:
        """Its number and its cost."""
        cost, cheapest = self._costs().min(0)
        place = int(cheapest)
        self._remove_column(place) if self.width == 1 else self._remove_columns(place)
        self._left[place] = False
        return int(self.units[place]), float(cost)

    def _remove_column(self, place: int) -> None:
        """The same as ``_remove_columns`` in half of the calls, which are most of the time where columns go one by one."""
        now = self._waiting
        gains, rows, inners, others = (table[:now] for table in (self._gains, self._rows, self._inners, self._others))
        row, inner, gain, other = (table[now] for table in (self._rows, self._inners, self._gains, self._others))
        torch.addmv(self.inverse[place], rows.T, gains[:, place], alpha=-1, out=row)
        torch.addmv(self.inner[place], inners.T, gains[:, place], alpha=-1, out=inner)
        inner.addmv_(gains.T, others[:, place], alpha=-1)
        torch.div(row, row[place], out=gain)
        torch.addcmul(inner, gain, inner[place], value=-1, out=other)
        self._inverse_blocks.view(-1).addcmul_(gain, row, value=-1)
        self._inner_blocks.view(-1).addcmul_(gain, inner, value=-1).addcmul_(other, gain, value=-1)
        self._inverse_blocks[place] = 1.0
        self._waiting += 1

    def _remove_columns(self, place: int) -> None:
        now, width = self._waiting, self.width
        columns = slice(place * width, (place + 1) * width)
        gains, rows, inners, others = (table[:now] for table in (self._gains, self._rows, self._inners, self._others))
        row = self.inverse[columns] - gains[:, columns].T @ rows
        inner = self.inner[columns] - gains[:, columns].T @ inners - others[:, columns].T @ gains
        gain = torch.linalg.solve(row[:, columns], row)
        other = inner - inner[:, columns] @ gain
        self._inverse_blocks -= self._products(gain, row)
        self._inner_blocks -= self._products(gain, inner) + self._products(other, gain)
        self._inverse_blocks[place] = torch.eye(width, dtype=row.dtype, device=row.device)
        for table, new in zip((self._gains, self._rows, self._inners, self._others), (gain, row, inner, other), strict=True):
            table[now : now + width] = new
        self._waiting += width

    def _products(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Diagonal blocks of firstᵀ second; both (width, C)."""
        shape = (self.width, len(self.units), self.width)
        return torch.einsum("auv,auw->uvw", first.view(shape), second.view(shape))

    def without_removed(self) -> _Left:
        """The same, up to date, without what is gone: only what is left is brought up to date."""
        stay = self._left.repeat_interleave(self.width).nonzero().flatten()
        gains, rows, inners, others = (
            table[: self._waiting].index_select(1, stay) for table in (self._gains, self._rows, self._inners, self._others)
        )
        scratch = self.inverse.new_empty(len(stay), len(self.inverse))
        inverse, inner = (_principal(matrix, stay, scratch) for matrix in (self.inverse, self.inner))
        inverse.addmm_(gains.T, rows, alpha=-1)
        inner.addmm_(torch.cat([gains, others]).T, torch.cat([inners, gains]), alpha=-1)
        return _Left(inverse, inner, self.units[self._left], self.width)


def _principal(matrix: torch.Tensor, stay: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """``matrix[stay][:, stay]`` in the memory of ``matrix``, which is lost: new memory costs as much as the copy."""
    torch.index_select(matrix, 0, stay, out=scratch)
    found = matrix.view(-1)[: len(stay) ** 2].view(len(stay), len(stay))
    return torch.index_select(scratch, 1, stay, out=found)
