"""Tensors as they stand in files, by the names that the language model's class has for them.

transformers opens a folder whose names lack the class's prefix (``layers.0...``, as its base model saves itself), and one
that has it twice; it passes over buffers that it computes. In a larger model the names have another prefix, and tensors stand
beside the language model's (``pipeline.architecture.wrappers``). Here is the one place that knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.architecture.families import Family
from pipeline.architecture.wrappers import name_like, text_name
from pipeline.common.errors import TrimlineError, shortened

# Buffers of old checkpoints: rotary tables, which every current loader computes, and fairseq's mark of a version.
PASSED_OVER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)decoder\.version$")
CHUNK = 2**22  # numbers compared at once


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        shard: name of its file.
        name: in that file.
        shape: rows first.
        dtype: safetensors' word for it, such as ``BF16``.
    """

    shard: str
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Stacked(StoredTensor):
    """A tensor that files hold in parts: its first part's place, and the whole's shape.

    Attributes:
        parts: along a new first axis, each as what follows each other along its first; one without a new axis where there is one part.
        new_axis: whether there is a new first axis.
    """

    parts: tuple[tuple[StoredTensor, ...], ...] = ()
    new_axis: bool = True


class Shards:
    """Opened files of tensors.

    Raises:
        TrimlineError: one is truncated or corrupt.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._handles = {path.name: _open(path) for path in paths}

    def __iter__(self) -> Iterator[StoredTensor]:
        """Every tensor, file by file in their order."""
        for shard, handle in self._handles.items():
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                found = handle.get_slice(name)
                yield StoredTensor(shard, name, tuple(found.get_shape()), str(found.get_dtype()))

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """The whole tensor."""
        if isinstance(stored, Stacked):
            wholes = [torch.cat([self.read(part) for part in parts]) if len(parts) > 1 else self.read(parts[0]) for parts in stored.parts]
            return torch.stack(wholes) if stored.new_axis else wholes[0]
        with _readable(stored):
            tensor: torch.Tensor = self._handles[stored.shard].get_tensor(stored.name)
        return tensor

    def rows(self, stored: StoredTensor, first: int, last: int) -> torch.Tensor:
        """Some of its rows."""
        with _readable(stored):
            tensor: torch.Tensor = self._handles[stored.shard].get_slice(stored.name)[first:last]
        return tensor

    def same(self, one: StoredTensor, other: StoredTensor, theirs: Shards | None = None) -> bool:
        """Whether two tensors hold the same numbers, whatever their types; ``theirs`` are the files of ``other``."""
        if one.shape != other.shape:
            return False
        if not one.shape:
            return torch.equal(self.read(one), (theirs or self).read(other))
        step = max(1, CHUNK // max(1, torch.Size(one.shape[1:]).numel()))
        return all(
            torch.equal(self.rows(one, first, first + step).double(), (theirs or self).rows(other, first, first + step).double())
            for first in range(0, one.shape[0], step)
        )


def canonical_name(name: str, family: Family, known: Mapping[str, Any]) -> str:
    """What the model's class calls a stored tensor; names that it does not know stay.

    Args:
        name: in the file.
        family: of the model.
        known: the names that the class has.
    """
    prefix = family.blocks.partition(".")[0] + "."
    if family.on_disk and name.startswith(family.on_disk):
        return prefix + name.removeprefix(family.on_disk)
    if name in known:
        return name
    if name.removeprefix(prefix) in known:
        return name.removeprefix(prefix)
    return prefix + name if prefix + name in known else name


def by_canonical_name(shards: Shards, rename: Callable[[str], str | None], folder: Path) -> dict[str, StoredTensor]:
    """Every tensor by the name that the model's class has for it, without the buffers that are passed over.

    Args:
        shards: opened files.
        rename: a name in a file to the class's; None for a tensor that is not the model's.
        folder: for the sentence.

    Raises:
        TrimlineError: one stands there twice, with other numbers.
    """
    found: dict[str, StoredTensor] = {}
    for stored in shards:
        name = rename(stored.name)
        if name is None or PASSED_OVER.search(name):
            continue
        before = found.setdefault(name, stored)
        if before is not stored and not shards.same(before, stored):
            raise TrimlineError(
                f"The tensor {name} of {folder} stands in both {_place(before)} and {_place(stored)}, with other numbers.",
                "Delete what is left over of the two, or fetch the checkpoint again.",
            )
    return found


class InWhole(Mapping[str, torch.Tensor]):
    """Tensors of a language model by the names of a folder that holds it in a larger model, and what stands beside them there.

    Args:
        tensors: by the names of the language model's own class; each is asked for when it is wanted.
        example: what that folder calls some tensor of the language model.
        beside: names of the other tensors.
        read: gives one of these.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], example: str, beside: Iterable[str], read: Callable[[str], torch.Tensor]
    ) -> None:
        self._tensors, self._read = tensors, read
        self._inside = {name_like(name, example): name for name in tensors}
        self._names = (*self._inside, *beside)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._inside[name]] if name in self._inside else self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def beside_text(shards: Shards) -> dict[str, StoredTensor]:
    """The tensors of a larger model's folder that are not its language model's, by their names there."""
    return {stored.name: stored for stored in shards if text_name(stored.name) is None}


def _place(stored: StoredTensor) -> str:
    return f"{stored.shard} ({stored.name})"


@contextmanager
def _readable(stored: StoredTensor) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise TrimlineError(
            f"The tensor {stored.name} in {stored.shard} cannot be read as {stored.dtype} ({shortened(str(error), 200)}).",
            "Store it as F32, F16 or BF16.",
        ) from None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TrimlineError(f"{path} is truncated or corrupt ({shortened(str(error), 200)}).", "Fetch the checkpoint again.") from None
