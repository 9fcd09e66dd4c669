"""A projection with its curvature: dead rows and columns are left out of all the maths, cost nothing and stay zero."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from pipeline.prune.kronecker.costs import column_costs, conditional, element_costs, marginal, row_costs
from pipeline.prune.kronecker.factors import Damped, balanced, live_columns, live_rows, principal
from pipeline.prune.kronecker.updates import MOST_TOGETHER, Correlation, element_update, structured_update


class Variant(StrEnum):
    """Which published cost: what stays adapts (OBS), or it does not (OBD), with both factors or with inputs alone."""

    SURGEON = "surgeon"
    K_OBD = "k_obd"
    L_OBD = "l_obd"


@dataclass(frozen=True)
class Damping:
    """Added to the diagonals, in units of their means; the published value for rows and columns."""

    inputs: float = 0.01
    outputs: float = 0.01


@dataclass(frozen=True)
class Projection:
    """Weight and factors of one projection, the bias as a last column.

    Attributes:
        weight: shape (R, C).
        rows, columns: what is live, masks of shape (R,) and (C,).
        inputs, outputs: A and G of what is live.
    """

    weight: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    inputs: Damped
    outputs: Damped

    @classmethod
    def of(cls, weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, damping: Damping) -> Projection:
        """From a weight (R, C) and the factors A (C, C) and G (R, R), of any scale."""
        rows, columns = live_rows(weight, outputs), live_columns(weight, inputs)
        a, g = balanced(principal(inputs, columns), principal(outputs, rows))
        return cls(weight, rows, columns, Damped.by(a, damping.inputs), Damped.by(g, damping.outputs))

    @property
    def live(self) -> torch.Tensor:
        """The weight's live rows and columns."""
        return self.weight[self.rows][:, self.columns]

    def curvatures(self, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        """γ along the rows, shape (R,), and α along the columns, shape (C,), fp64; 0 where dead."""
        if variant is Variant.SURGEON:
            along = conditional(self.outputs), conditional(self.inputs)
        else:
            along = marginal(self.outputs.matrix), marginal(self.inputs.matrix)
        return _spread(along[0], self.rows), _spread(along[1], self.columns)

    def row_costs(self, variant: Variant) -> torch.Tensor:
        """Cost of removing each row, shape (R,), fp64."""
        rows = conditional(self.outputs) if variant is Variant.SURGEON else marginal(self.outputs.matrix)
        return _spread(row_costs(self.live, self.inputs.matrix, rows), self.rows)

    def column_costs(self, variant: Variant) -> torch.Tensor:
        """Cost of removing each column, shape (C,), fp64."""
        columns = conditional(self.inputs) if variant is Variant.SURGEON else marginal(self.inputs.matrix)
        return _spread(column_costs(self.live, self.outputs.matrix, columns), self.columns)

    def without(self, rows: torch.Tensor, columns: torch.Tensor, correlation: Correlation) -> torch.Tensor:
        """The weight (R, C), fp64, with zeros in the rows and columns that two masks name, and the others updated."""
        gone = columns[self.columns], rows[self.rows]
        return self._put(structured_update(self.live, self.inputs, self.outputs, *gone, correlation))

    def without_elements(self, mask: torch.Tensor, most: int = MOST_TOGETHER, cumulative: bool = True) -> torch.Tensor:
        """The weight (R, C), fp64, with zeros at ``mask`` (R, C), and the others updated; see ``element_update``."""
        left = mask[self.rows][:, self.columns]
        return self._put(element_update(self.live, left, self.inputs.inverse(), self.outputs.inverse(), most, cumulative))

    def _put(self, live: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(self.weight.shape, dtype=live.dtype, device=live.device)
        whole[self.rows.nonzero(), self.columns.nonzero().T] = live
        return whole


def activation_costs(weight: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """L-OBD: ½ w² A_jj for every weight, shape (R, C), fp32; those of a row or column are the sums of these.

    Args:
        weight: shape (R, C).
        squares: mean over *all* tokens of x², shape (C,). The published code keeps that of the last sequence only.
    """
    return element_costs(weight, torch.ones(len(weight), device=weight.device), squares)


def _spread(live: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Values of what is live into places of all, zeros elsewhere."""
    whole = torch.zeros(len(where), dtype=live.dtype, device=live.device)
    whole[where] = live
    return whole
