"""Hidden states that are needed once more later: in memory while they are small, in files beyond that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# As much as the weights of a model of half a billion parameters: small beside whatever fits such a model. States of
# SmolLM2 at 64 windows of 512 tokens take 1.1 GB in bf16, those of a 7B at 128 windows of 2048 take 69 GB.
MEMORY_LIMIT = 2**30

Key = tuple[int, int]  # block, batch


class SavedStates:
    """Tensors by key, each taken once.

    Those that no longer fit into ``limit`` bytes of memory go into files of ``folder``, one per tensor: plain writes,
    because a full disk is then an error that names itself, and no fault of a memory map.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._left = folder, limit
        self._held: dict[Key, torch.Tensor] = {}
        self._filed: dict[Key, torch.Tensor] = {}  # shape, dtype and device, without values

    def put(self, key: Key, states: torch.Tensor) -> None:
        """Keeps ``states``, which nobody may change afterwards.

        Raises:
            OSError: the disk is full.
        """
        if states.nbytes <= self._left:
            self._left -= states.nbytes
            self._held[key] = states
            return
        self._filed[key] = states.new_empty(()).expand(states.shape)
        with self._file(key).open("wb") as file:
            file.write(_bytes_of(states.cpu().contiguous()))

    def take(self, key: Key) -> torch.Tensor:
        """Hands the states of ``key`` back and forgets them."""
        if key in self._held:
            states = self._held.pop(key)
            self._left += states.nbytes
            return states
        form = self._filed.pop(key)
        states = torch.empty(form.shape, dtype=form.dtype)
        with self._file(key).open("rb") as file:
            file.readinto(_bytes_of(states))
        self._file(key).unlink()
        return states.to(form.device)

    def _file(self, key: Key) -> Path:
        return self._folder / ".".join(map(str, key))


@contextmanager
def saved_states() -> Iterator[SavedStates]:
    """An empty store; its files, in the system's temporary folder (``TMPDIR``), go when it is left, however that happens."""
    with tempfile.TemporaryDirectory(prefix="trimline-states-") as folder:
        yield SavedStates(Path(folder), MEMORY_LIMIT)


def _bytes_of(states: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU; numpy knows no bf16, but bytes it does."""
    return states.view(-1).view(torch.uint8).numpy().data
