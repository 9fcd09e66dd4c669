"""Every sublayer at every size: which units it keeps, and what its reader then is.

EvoPress and Týr-the-Pruner keep a library of layers that were pruned to every level beforehand. Here a reader is made when a
choice asks for it, from the order of the units and the statistics that the step's compensation reads, and the latest are kept:
solving for one takes less than a pass of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pipeline.architecture.families import Linear, Sublayer
from pipeline.architecture.spaces import SUBLAYERS, IndexSet, Space, channels
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.events import Events
from pipeline.prune.compensation.readers import shifted_bias, solved_reader
from pipeline.prune.model.shrinking import ShrinkingModel

KEPT_BYTES = 2**29  # of readers that were made


class LiveReader(NamedTuple):
    """What a reader is to hold: shape (rows, columns) of the dense model, zeros where units are gone; the bias, or None where it has none."""

    linear: Linear
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass
class Library:
    """Readers by sublayer and size.

    Attributes:
        model: with all units of every sublayer still there.
        order: of every sublayer its units, from the one that stays longest; of a block ``(0,)``.
        compensation: of the step, or ``none`` where a choice is judged with zeros alone.
        damping: of least squares.
        seen: what the compensation reads, by block.
    """

    model: ShrinkingModel
    order: Mapping[IndexSet, tuple[int, ...]]
    compensation: str
    damping: float
    seen: Mapping[int, BlockStatistics]
    _made: OrderedDict[tuple[IndexSet, int], list[LiveReader]] = field(default_factory=OrderedDict)

    def readers(self, among: IndexSet, size: int) -> list[LiveReader]:
        """The readers that differ from the model's own where so many units stay; of a block that goes, both."""
        place = (among, size)
        if place not in self._made:
            kinds = [SUBLAYERS[among.space]] if among.space is not Space.LAYER else list(Sublayer)
            units = tuple(sorted(self.order[among][:size])) if among.space is not Space.LAYER else ()
            self._made[place] = [self._reader(kind, among.block, units) for kind in kinds]
            self._forget()
        self._made.move_to_end(place)
        return self._made[place]

    def _reader(self, sublayer: Sublayer, block: int, units: tuple[int, ...]) -> LiveReader:
        reader = self.model.geometry.family.reader(sublayer)
        weight, bias = self.model.weight(block, reader.name), self.model.bias(block, reader.name)
        stay = channels(units, self.model.geometry.unit_width(reader.columns))
        kept, shift = weight[:, stay], None
        if self.compensation == "least_squares" and units:
            kept, shift = solved_reader(self.model, sublayer, block, units, self.seen[block], self.damping)
        elif self.compensation == "bias":  # of a sublayer that goes whole, what the one before it gets is the same here
            shift = shifted_bias(self.model, sublayer, block, units, self.seen[block])
        elif not units and bias is not None:
            bias = torch.zeros_like(bias)
        full = torch.zeros_like(weight)
        full[:, stay] = kept.to(full.device)
        if shift is not None:
            bias = shift.cpu() if bias is None else bias + shift.cpu()
        return LiveReader(reader, full, bias)

    def _forget(self) -> None:
        """The oldest, where all of them together are too large."""
        size = sum(reader.weight.nbytes for made in self._made.values() for reader in made)
        while size > KEPT_BYTES and len(self._made) > 1:
            size -= sum(reader.weight.nbytes for reader in self._made.popitem(last=False)[1])


def statistics_for(
    model: ShrinkingModel,
    windows: torch.Tensor,
    order: Mapping[IndexSet, tuple[int, ...]],
    compensation: str,
    measured: Mapping[int, BlockStatistics],
    events: Events,
) -> Mapping[int, BlockStatistics]:
    """What readers are made from, of every block: what was ``measured``, or swept now where that lacks it."""
    points = frozenset(SUBLAYERS[among.space].point for among in order if among.space in SUBLAYERS)
    if compensation == "none" or not points:
        return {}
    needs = Needs(gram=points) if compensation == "least_squares" else Needs(squares=points)
    whole = all(
        block in measured
        and points <= set(measured[block].inputs)
        and all(measured[block].inputs[point].upper is not None for point in needs.gram)
        for block in model.selection.blocks
    )
    return measured if whole else dict(sweep(model.model, model.geometry.family, windows, needs, events))
