"""Tensors that pruning changed: in memory while they are few, in a file without a name beyond that.

Updates of a whole model are as large as the model. Where its blocks are paged, so must they be.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import torch

from pipeline.tensors.saved_states import bytes_of


@dataclass(frozen=True)
class Filed:
    """A tensor in the file: where it starts; and its shape, dtype and device, without values."""

    place: int
    form: torch.Tensor


class Changes(Mapping[str, torch.Tensor]):
    """Tensors by name, set as often as one likes; those beyond ``limit`` bytes are read from a file whenever they are asked for.

    The file has no name and lies in the system's temporary folder (``TMPDIR``): whatever ends the process, its space is free again.
    It is read and written as ordinary bytes, because a full disk is then an error that names itself.

    Args:
        limit: bytes that may be in memory; None is any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._left = limit
        self._tensors: dict[str, torch.Tensor | Filed] = {}
        self._ours: set[str] = set()  # names whose place in the file no copy reads
        self._file = _Nameless()

    @property
    def filed(self) -> int:
        """Tensors that are in the file and not in memory."""
        return sum(isinstance(kept, Filed) for kept in self._tensors.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        kept = self._tensors[name]
        return self._file.read(kept) if isinstance(kept, Filed) else kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def form(self, name: str) -> torch.Tensor:
        """Shape and dtype of a tensor, without reading it."""
        kept = self._tensors[name]
        return kept.form if isinstance(kept, Filed) else kept

    def put(self, name: str, value: torch.Tensor) -> None:
        """Keeps ``value``, which nobody may change afterwards, in the place of what had this name before.

        Raises:
            OSError: the disk is full.
        """
        before = self._tensors.get(name)
        if isinstance(before, torch.Tensor) and self._left is not None:
            self._left += before.nbytes
        if self._left is None or value.nbytes <= self._left:
            self._left = None if self._left is None else self._left - value.nbytes
            self._tensors[name] = value
            return
        again = before.place if isinstance(before, Filed) and name in self._ours and before.form.nbytes == value.nbytes else None
        self._tensors[name] = self._file.write(value, again)
        self._ours.add(name)

    def copy(self) -> Changes:
        """These tensors as they are now, whatever happens to this one later; both live as long as the file is open."""
        twin = Changes(self._left)
        twin._tensors, twin._file = dict(self._tensors), self._file
        self._ours.clear()
        return twin

    def close(self) -> None:
        """Lets go of the file and of what is in it."""
        self._file.close()


class Selected(Mapping[str, torch.Tensor]):
    """Some changed tensors with the rows and columns that stay, each cut when it is asked for.

    Args:
        changes: all of them; a copy, where they go on changing.
        cuts: for each name that stays, the cut; of a tensor without values it gives one without values.
    """

    def __init__(self, changes: Changes, cuts: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self._changes, self._cuts = changes, cuts

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._cuts[name](self._changes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._cuts)

    def __len__(self) -> int:
        return len(self._cuts)

    def form(self, name: str) -> torch.Tensor:
        """Shape and dtype of a tensor, without reading it."""
        return self._cuts[name](torch.empty_like(self._changes.form(name), device="meta"))


class _Nameless:
    """A file that is made when the first tensor is written."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def write(self, value: torch.Tensor, place: int | None) -> Filed:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="trimline-changes-")  # noqa: SIM115 - lives as long as the changes
        place = self._file.seek(0, os.SEEK_END) if place is None else self._file.seek(place)
        self._file.write(bytes_of(value.detach().cpu().contiguous()))
        return Filed(place, value.new_empty(()).expand(value.shape))

    def read(self, filed: Filed) -> torch.Tensor:
        assert self._file is not None
        with torch.inference_mode(False):  # whoever asks, the next may want gradients
            value = torch.empty(filed.form.shape, dtype=filed.form.dtype)
            self._file.seek(filed.place)
            self._file.readinto(bytes_of(value))  # type: ignore[attr-defined]
            return value.to(filed.form.device)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
