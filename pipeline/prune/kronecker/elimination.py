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

AT_ONCE = 64  # columns of updates that wait for one matrix product


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
    weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, width: int, damping: float, correlation: float = 1.0
) -> Elimination:
    """All units, down to none.

    Args:
        weight: the reader's weight W, shape (R, C).
        inputs: A, second moment of its inputs, shape (C, C).
        outputs: G, second moment of the gradients at its outputs, shape (R, R).
        width: columns per unit.
        damping: λ in units of A's mean diagonal.
        correlation: what A holds between different units is multiplied by it.
    """
    if correlation < 1:
        units = torch.arange(len(inputs), device=inputs.device) // width
        inputs = torch.where(units[:, None] == units, inputs, correlation * inputs)
    inner = weight.double().T @ outputs.double() @ weight.double()
    ridge = damping * inputs.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny).item()  # inputs may all be zero
    left = _Left(Damped(inputs, ridge).inverse(), inner, torch.arange(len(inputs) // width, device=inputs.device), width)
    gone, costs = [], []
    while len(left.units):
        for _ in range(min(max(1, AT_ONCE // width), len(left.units))):
            unit, cost = left.remove_cheapest()
            gone.append(unit)
            costs.append(cost)
        left = left.without_removed()
    errors = torch.tensor([0.0, *costs], dtype=torch.float64).cumsum(0).flip(0)
    return Elimination(torch.tensor(gone[::-1]), errors)


class _Left:
    """What is left of (A + λ)⁻¹ and of M = Wᵀ G W, W being the reader that is best for it, shape (C, C) both.

    Removing columns u with P = (A + λ)⁻¹_uu and K = P⁻¹ (A + λ)⁻¹_u: takes W to W − W_u K. Rows are brought up to date as they
    are needed, and the whole matrices only every so often, in one product.
    """

    def __init__(self, inverse: torch.Tensor, inner: torch.Tensor, units: torch.Tensor, width: int) -> None:
        self.inverse, self.inner, self.units, self.width = inverse, inner, units, width
        self._left = torch.ones(len(units), dtype=torch.bool, device=units.device)
        self._inverse_blocks, self._inner_blocks = marginal_blocks(inverse, width), marginal_blocks(inner, width)
        empty = inverse.new_zeros(0, len(inverse))
        self._gains, self._rows, self._inners, self._others = empty, empty, empty, empty

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
        costs = self._costs()
        place = int(costs.argmin())
        columns = slice(place * self.width, (place + 1) * self.width)
        row = self.inverse[columns] - self._gains[:, columns].T @ self._rows
        inner = self.inner[columns] - self._gains[:, columns].T @ self._inners - self._others[:, columns].T @ self._gains
        gain = torch.linalg.solve(row[:, columns], row)
        other = inner - inner[:, columns] @ gain
        self._inverse_blocks -= self._products(gain, row)
        self._inner_blocks -= self._products(gain, inner) + self._products(other, gain)
        self._inverse_blocks[place] = torch.eye(self.width, dtype=row.dtype, device=row.device)
        self._left[place] = False
        self._gains, self._rows = torch.cat([self._gains, gain]), torch.cat([self._rows, row])
        self._inners, self._others = torch.cat([self._inners, inner]), torch.cat([self._others, other])
        return int(self.units[place]), float(costs[place])

    def _products(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Diagonal blocks of firstᵀ second; both (width, C)."""
        shape = (self.width, len(self.units), self.width)
        return torch.einsum("auv,auw->uvw", first.view(shape), second.view(shape))

    def without_removed(self) -> _Left:
        """The same, up to date, without what is gone."""
        self.inverse.addmm_(self._gains.T, self._rows, alpha=-1)
        self.inner.addmm_(self._gains.T, self._inners, alpha=-1).addmm_(self._others.T, self._gains, alpha=-1)
        columns = self._left.repeat_interleave(self.width)
        return _Left(self.inverse[columns][:, columns], self.inner[columns][:, columns], self.units[self._left], self.width)
