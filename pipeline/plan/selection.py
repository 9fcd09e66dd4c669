"""Which units of a model stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.architecture.families import Axis, Linear, Sublayer
from pipeline.architecture.families.kinds import Size
from pipeline.architecture.geometry import BlockShape, Geometry

WHOLE = (Axis.HEAD, Axis.EXPERT_CHANNEL, Axis.EXPERT_PAIR)  # axes that lose nothing


@dataclass(frozen=True)
class Selection:
    """The units that stay.

    Attributes:
        blocks: original numbers of the blocks that stay, ascending.
        ffn, kv_groups: for every *original* block, the ascending unit numbers that stay; () where the sublayer goes, or is of a
            kind that has no units.
        residual: ascending channels of the residual stream that stay; None where all do.
        experts: as ``ffn``, of routed experts; None where the model has none.
    """

    blocks: tuple[int, ...]
    ffn: tuple[tuple[int, ...], ...]
    kv_groups: tuple[tuple[int, ...], ...]
    residual: tuple[int, ...] | None = None
    experts: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def everything(cls, geometry: Geometry) -> Selection:
        return cls(
            blocks=tuple(range(len(geometry.blocks))),
            ffn=tuple(tuple(range(block.ffn)) for block in geometry.blocks),
            kv_groups=tuple(tuple(range(block.kv_groups)) for block in geometry.blocks),
            experts=None if geometry.family.mixture is None else tuple(tuple(range(block.experts)) for block in geometry.blocks),
        )

    def units(self, sublayer: Sublayer) -> tuple[tuple[int, ...], ...]:
        return self.ffn if sublayer is Sublayer.FFN else self.kv_groups

    def shape(self, block: int, original: Geometry) -> BlockShape:
        """What of an original block stays, whether or not the block does."""
        dense, experts = original.blocks[block], len(self.experts_of(block))
        return replace(dense, ffn=len(self.ffn[block]), kv_groups=len(self.kv_groups[block]), experts=experts)

    def experts_of(self, block: int) -> tuple[int, ...]:
        """Routed experts of an original block that stay; () where it has none."""
        return () if self.experts is None else self.experts[block]

    def with_experts(self, block: int, units: Sequence[int]) -> Selection:
        """The same selection with other routed experts of an original block."""
        assert self.experts is not None
        every = list(self.experts)
        every[block] = tuple(units)
        return replace(self, experts=tuple(every))

    def with_units(self, sublayer: Sublayer, block: int, units: Sequence[int]) -> Selection:
        """The same selection with other units of a sublayer of an original block."""
        every = list(self.units(sublayer))
        every[block] = tuple(units)
        return replace(self, ffn=tuple(every)) if sublayer is Sublayer.FFN else replace(self, kv_groups=tuple(every))

    def geometry(self, original: Geometry) -> Geometry:
        """Sizes of the model that keeps this selection."""
        blocks = tuple(self.shape(block, original) for block in self.blocks)
        return replace(original, blocks=blocks, hidden=original.hidden if self.residual is None else len(self.residual))

    @property
    def stream(self) -> torch.Tensor | None:
        """Kept channels of the residual stream, shape (kept,); None where all stay."""
        return None if self.residual is None else torch.tensor(self.residual, dtype=torch.long)

    def axis_indices(self, axis: Axis, block: int, geometry: Geometry) -> torch.Tensor:
        """Kept indices along ``axis`` of a tensor of original block ``block``, shape (kept × unit width,); never of the stream's."""
        kept = {Axis.FFN: self.ffn[block], Axis.EXPERT: self.experts_of(block)}.get(axis, self.kv_groups[block])
        units, width = torch.tensor(kept, dtype=torch.long), geometry.unit_width(axis)
        return (units[:, None] * width + torch.arange(width)).flatten()

    def kept(self, axis: Size, block: int, geometry: Geometry) -> torch.Tensor | None:
        """Kept indices along any axis of a tensor of original block ``block``; None where all stay, as of a plain number or what config keys give."""
        if axis is Axis.RESIDUAL:
            return self.stream
        return self.axis_indices(axis, block, geometry) if isinstance(axis, Axis) and axis not in WHOLE else None

    def row_indices(self, linear: Linear, block: int, geometry: Geometry) -> torch.Tensor | None:
        """Kept rows of a projection; None where all stay. Fused projections are cut section by section."""
        if linear.rows == (Axis.RESIDUAL,):
            return self.stream
        kept, start = [], 0
        for axis in linear.rows:
            kept.append(self.axis_indices(axis, block, geometry) + start)
            start += geometry.axis_size(axis, geometry.blocks[block])
        return torch.cat(kept)

    def column_indices(self, linear: Linear, block: int, geometry: Geometry) -> torch.Tensor | None:
        """Kept columns of a projection; None where all stay."""
        return self.stream if linear.columns is Axis.RESIDUAL else self.axis_indices(linear.columns, block, geometry)


def _checked(selection: Selection) -> Selection:
    """Raises ValueError where the lists do not belong to one model."""
    if len(selection.ffn) != len(selection.kv_groups):
        raise ValueError(f"ffn speaks of {len(selection.ffn)} blocks, kv_groups of {len(selection.kv_groups)}")
    if selection.experts is not None and len(selection.experts) != len(selection.ffn):
        raise ValueError(f"experts speaks of {len(selection.experts)} blocks, ffn of {len(selection.ffn)}")
    if not selection.blocks or selection.blocks[-1] >= len(selection.ffn):
        raise ValueError(f"the blocks that stay are none, or beyond the {len(selection.ffn)} that ffn speaks of")
    if selection.residual == ():
        raise ValueError("no channel of the residual stream stays")
    return selection


def select(tensor: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None) -> torch.Tensor:
    """The kept rows and columns, contiguous; None keeps a whole dimension."""
    if rows is not None:
        tensor = tensor.index_select(0, rows)
    if columns is not None:
        tensor = tensor.index_select(1, columns)
    return tensor.contiguous()
