"""Projections of a model whose units are partly gone: what of them is left, and writing single weights into that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.architecture.families import Linear
from pipeline.prune.model.masks import Pattern
from pipeline.prune.model.shrinking import ShrinkingModel


def check_widths(model: ShrinkingModel, pattern: Pattern) -> None:
    """Whether every projection that is left can hold whole groups.

    Raises:
        TrimlineError: names one that cannot.
    """
    family = model.geometry.family
    for block in model.selection.blocks:
        for linear in live_linears(model, block):
            columns = model.selection.column_indices(linear, block, model.geometry)
            width = model.geometry.hidden if columns is None else len(columns)
            pattern.check_width(width, family.module(block, linear.name))


def live_linears(model: ShrinkingModel, block: int) -> Iterable[Linear]:
    """The projections of a block that are still there."""
    shape = model.selection.shape(block, model.geometry)
    return [linear for linear in model.geometry.family.linears if shape.holds(linear)]


def live_indices(model: ShrinkingModel, block: int, linear: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Original numbers of the rows and of the columns of a projection that are left."""
    dense = model.geometry.linear_shape(linear, model.geometry.blocks[block])
    rows = model.selection.row_indices(linear, block, model.geometry)
    columns = model.selection.column_indices(linear, block, model.geometry)
    return torch.arange(dense[0]) if rows is None else rows, torch.arange(dense[1]) if columns is None else columns


def store(model: ShrinkingModel, block: int, linear: Linear, pruned: torch.Tensor, pattern: str) -> None:
    """Writes the pruned rows and columns back, and that they are sparse."""
    name = model.geometry.family.module(block, linear.name) + ".weight"
    rows, columns = live_indices(model, block, linear)
    full = model.tensor(name).clone()
    full[rows[:, None], columns] = pruned.cpu()
    model.replace(name, full)
    model.sparse[name] = pattern


@dataclass(frozen=True)
class Remaining:
    """What is left of a projection, its bias as a last column.

    Attributes:
        model, block, linear: which.
        rows, columns: original numbers of what is left, without the bias.
        biased: whether it has a bias.
    """

    model: ShrinkingModel
    block: int
    linear: Linear
    rows: torch.Tensor
    columns: torch.Tensor
    biased: bool

    @classmethod
    def of(cls, model: ShrinkingModel, block: int, linear: Linear) -> Remaining:
        return cls(model, block, linear, *live_indices(model, block, linear), model.bias(block, linear.name) is not None)

    def weight(self, device: torch.device) -> torch.Tensor:
        """[W | b], shape (R, C + 1), or W, fp32."""
        bias = self.model.bias(self.block, self.linear.name)
        weight = self.model.weight(self.block, self.linear.name)[self.rows][:, self.columns]
        return (weight if bias is None else torch.cat((weight, bias[self.rows, None]), dim=1)).to(device)

    def store(self, pruned: torch.Tensor, pattern: str) -> None:
        """Writes back what ``weight`` gave, pruned."""
        width = len(self.columns)
        store(self.model, self.block, self.linear, pruned[:, :width], pattern)
        bias = self.model.bias(self.block, self.linear.name)
        if bias is not None:
            whole = bias.clone()
            whole[self.rows] = pruned[:, width].cpu()
            self.model.replace(self.model.geometry.family.module(self.block, self.linear.name) + ".bias", whole)


def remaining(model: ShrinkingModel, block: int) -> list[Remaining]:
    """The projections of a block that are still there; none where the block went."""
    return [Remaining.of(model, block, linear) for linear in live_linears(model, block)] if block in model.selection.blocks else []
