"""What belongs to one unit, found by selecting it alone."""

from __future__ import annotations

import torch

from pipeline.architecture.families import Linear
from pipeline.architecture.geometry import Geometry
from pipeline.plan.selection import Selection, select


def parts_of_units(values: torch.Tensor, linear: Linear, geometry: Geometry, block: int = 0) -> list[torch.Tensor]:
    """Of a projection's values (R, C), the rows or columns that would stay if one unit stayed alone; one per unit."""
    everything, parts = Selection.everything(geometry), []
    for unit in range(geometry.blocks[block].units(linear.sublayer)):
        alone = everything.with_units(linear.sublayer, block, (unit,))
        parts.append(select(values, alone.row_indices(linear, block, geometry), alone.column_indices(linear, block, geometry)))
    return parts
