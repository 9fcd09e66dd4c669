"""Tensors that were computed, in a file that is mapped: they count as the system's file cache and not as memory of the process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.tensors.saved_states import bytes_of

ALIGNMENT = 64


class MappedTensors:
    """A file without a name that grows by what is kept in it; its space is free when nobody reads a tensor of it any more.

    Args:
        folder: on the disk that has room for it. Not the system's temporary folder, which may be memory.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as its tensors

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, dtype and shape, out of the file. Writing into what comes back changes nothing but that.

        Raises:
            OSError: the disk is full.
        """
        if not tensor.nbytes:
            return tensor
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(b"\0" * (-place % ALIGNMENT))
        place = self._file.tell()
        self._file.write(bytes_of(tensor.detach().cpu().contiguous()))
        self._file.flush()  # a full disk is an error here, and not a fault of the map later
        raw = np.memmap(self._file, np.uint8, "c", place, (tensor.nbytes,))  # type: ignore[call-overload]
        return torch.from_numpy(raw).view(tensor.dtype).view(tensor.shape)
