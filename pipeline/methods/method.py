"""What a method is: statistics and weights of one block into a score per unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.calibrate.statistics import BlockStatistics, Needs, ReaderStatistics
from pipeline.families import Sublayer
from pipeline.geometry import Geometry
from pipeline.recipe import PruneStep, Space


@dataclass(frozen=True)
class BlockView:
    """What a method sees of one block.

    Attributes:
        statistics: what the sweep collected.
        weight: module name inside the block to its weight, fp32, shape (rows, columns); read when asked for.
        geometry: sizes of the whole model.
        number: which block.
    """

    statistics: BlockStatistics
    weight: Callable[[str], torch.Tensor]
    geometry: Geometry
    number: int

    def reader(self, sublayer: Sublayer) -> ReaderStatistics:
        """Statistics of the inputs of the sublayer's reader."""
        return self.statistics.readers[sublayer]


class Method(Protocol):
    """A scoring rule.

    Attributes:
        name: as recipes write it.
        spaces: what it can score.
        allocation: how a budget is spread over blocks unless the recipe says otherwise.
    """

    name: str
    spaces: frozenset[Space]
    allocation: str

    def needs(self, step: PruneStep) -> Needs:
        """The statistics that ``score`` and the method's own allocation read."""

    def score(self, view: BlockView, space: Space, step: PruneStep) -> torch.Tensor:
        """Importance per unit of ``space`` in this block, shape (units,), fp32; for ``layer`` shape (1,)."""
