"""Hidden states that are needed once more later: in memory while they are small, in files beyond that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom

import torch

# As much as the weights of a model of half a billion parameters: small beside whatever fits such a model. States of
# SmolLM2 at 64 windows of 512 tokens take 1.1 GB in bf16, those of a 7B at 128 windows of 2048 take 69 GB.
MEMORY_LIMIT = 2**30

Key = tuple[int, int]  # block, batch


class SavedStates:
    """Tensors by key, each taken once, or looked at as often as needed.

    Those that no longer fit into ``limit`` bytes of memory go into one file without a name, in the system's temporary
    folder (``TMPDIR``): whatever ends the process, its space is free again. They are written and read as ordinary
    bytes, because a full disk is then an error that names itself, and no fault of a memory map.
    """

    def __init__(self, file: BufferedRandom, limit: int) -> None:
        self._file, self._left = file, limit
        self._held: dict[Key, torch.Tensor] = {}
        self._filed: dict[Key, tuple[int, torch.Tensor]] = {}  # where; and shape, dtype and device, without values

    def put(self, key: Key, states: torch.Tensor) -> None:
        """Keeps ``states``, which nobody may change afterwards.

        Raises:
            OSError: the disk is full.
        """
        if states.nbytes <= self._left:
            self._left -= states.nbytes
            self._held[key] = states
            return
        self._filed[key] = self._file.seek(0, os.SEEK_END), states.new_empty(()).expand(states.shape)
        self._file.write(bytes_of(states.cpu().contiguous()))

    def take(self, key: Key) -> torch.Tensor:
        """Hands the states of ``key`` back and forgets them."""
        if key in self._held:
            states = self._held.pop(key)
            self._left += states.nbytes
            return states
        return self._read(*self._filed.pop(key))

    def look(self, key: Key) -> torch.Tensor:
        """The states of ``key``, which stay."""
        return self._held[key] if key in self._held else self._read(*self._filed[key])

    def _read(self, place: int, form: torch.Tensor) -> torch.Tensor:
        states = torch.empty(form.shape, dtype=form.dtype)
        self._file.seek(place)
        self._file.readinto(bytes_of(states))
        return states.to(form.device)


@contextmanager
def saved_states(limit: int | None = None) -> Iterator[SavedStates]:
    """An empty store; beyond ``limit`` bytes, if that is below MEMORY_LIMIT, it is in a file. What it holds goes when it is left."""
    with tempfile.TemporaryFile(prefix="trimline-states-") as file:
        yield SavedStates(file, MEMORY_LIMIT if limit is None else min(limit, MEMORY_LIMIT))


def bytes_of(states: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU; numpy knows no bf16, but bytes it does."""
    return states.view(-1).view(torch.uint8).numpy().data
