"""Values per weight, added up over the units that the weights belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from pipeline.architecture.families import FAMILIES, Axis, Linear, Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry

WeightValues = Callable[[Linear], torch.Tensor]  # a projection to one value per weight, shape (R, C)


def linears_of(sublayers: Iterable[Sublayer]) -> list[Linear]:
    """Their projections in every family: methods say what they need before they are shown a model."""
    wanted = set(sublayers)
    return [linear for family in FAMILIES.values() for linear in family.linears if linear.sublayer in wanted]


def sum_per_unit(values: torch.Tensor, linear: Linear, geometry: Geometry, shape: BlockShape) -> torch.Tensor:
    """Σ over the rows (or, of a reader, the columns) of each unit, and over the other axis; shape (units,).

    Args:
        values: one per weight of ``linear``, shape (R, C).
        linear, geometry: say which rows or columns are whose.
        shape: of the block.
    """
    units = shape.units(linear.sublayer)
    if linear.columns is not Axis.RESIDUAL:
        return values.sum(dim=0).view(units, -1).sum(dim=1)
    sections = values.sum(dim=1).split([geometry.axis_size(axis, shape) for axis in linear.rows])
    return torch.stack([section.view(units, -1).sum(dim=1) for section in sections]).sum(dim=0)


def total_per_unit(values: WeightValues, sublayer: Sublayer, geometry: Geometry, block: int) -> torch.Tensor:
    """Σ over all projections that the units of a block's sublayer have rows or columns in; shape (units,)."""
    shape = geometry.blocks[block]
    linears = (*geometry.family.writers(sublayer), geometry.family.reader(sublayer))
    return torch.stack([sum_per_unit(values(linear), linear, geometry, shape) for linear in linears]).sum(dim=0)
