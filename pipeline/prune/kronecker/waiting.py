"""Factors of all projections between measuring and updating: in memory while they are few, in files beyond that.

For a Llama-2-7B they are 59 GiB. Projections that read the same inputs share one factor of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.architecture.families import Family, Linear, Point
from pipeline.tensors.saved_states import SavedStates, saved_states

Key = tuple[int, int]


class WaitingFactors:
    """Factors by block and projection. They are asked for in any order of blocks, and projections of one point together."""

    def __init__(self, saved: SavedStates, family: Family) -> None:
        self._saved = saved
        self._names = [linear.name for linear in family.linears]
        self._stored: set[Key] = set()
        self._held: tuple[Key, torch.Tensor] | None = None

    def put(self, block: int, linear: Linear, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Keeps A and G; of projections that share A, it is kept once.

        Raises:
            OSError: the disk is full.
        """
        key = self._shared(block, linear, inputs.shape[0])
        if key not in self._stored:
            self._stored.add(key)
            self._saved.put(key, inputs)
        self._saved.put((block, self._names.index(linear.name)), outputs)

    def take(self, block: int, linear: Linear, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A and G; A stays in memory until another one is asked for.

        Args:
            columns: size of A, which says whether it is that with a constant 1.
        """
        key = self._shared(block, linear, columns)
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next is read
            self._held = key, self._saved.take(key)
        return self._held[1], self._saved.take((block, self._names.index(linear.name)))

    def _shared(self, block: int, linear: Linear, columns: int) -> Key:
        return block, len(self._names) + columns * len(Point) + list(Point).index(linear.point)


@contextmanager
def waiting_factors(family: Family, limit: int | None = None) -> Iterator[WaitingFactors]:
    """An empty store, in files beyond ``limit`` bytes or 1 GiB; they go when it is left, however that happens."""
    with saved_states(limit) as saved:
        yield WaitingFactors(saved, family)
