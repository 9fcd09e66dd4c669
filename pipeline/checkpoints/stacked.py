"""Tensors inside a block whose names in files are not those in memory, both ways: stacked experts stand there one by one.

``Family.stored`` says which. A folder may hold them by either: transformers writes them as the one that it opened did.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from pipeline.architecture.families import Family
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.quantised import FLOATS
from pipeline.checkpoints.stored import Stacked, StoredTensor
from pipeline.common.errors import TrimlineError

Held = dict[str, StoredTensor]
KEPT = 2  # stacked tensors that are kept while their experts are written: a block's experts are written in turn


def in_memory(held: Held, geometry: Geometry, folder: Path) -> Held:
    """Tensors by the names that the class has for them, those of files put together.

    Args:
        held: by their names in files.
        geometry: of the model.
        folder: for the sentence.

    Raises:
        TrimlineError: some of the parts of a tensor are there and others are not, or they have unlike shapes.
    """
    found = dict(held)
    for number, block in enumerate(geometry.blocks):
        for memory, names in geometry.family.stored.items():
            parts = part_names(geometry.family, number, names, block.experts)
            there = [name for names in parts for name in names if name in found]
            whole = geometry.family.module(number, memory)
            if there and whole not in found:
                found[whole] = _whole(found, parts, there, "{}" in names[0], folder)
    return found


def part_names(family: Family, block: int, names: tuple[str, ...], experts: int) -> list[list[str]]:
    """What files call the parts of one tensor of a block: expert by expert, in the order of their rows."""
    count = experts if "{}" in names[0] else 1
    return [[family.module(block, name.replace("{}", str(expert))) for name in names] for expert in range(count)]


def _whole(found: Held, parts: list[list[str]], there: list[str], new_axis: bool, folder: Path) -> Stacked:
    for name in (name for names in parts for name in names):
        if name not in found:
            raise TrimlineError(
                f"{folder} holds {there[0]} and no {name}, which its config.json describes.",
                "Its config describes another model than its weights, or a part of it was not fetched.",
            )
    stored = [[found.pop(name) for name in names] for names in parts]
    first = stored[0][0]
    for one, other in ((one, other) for ones in stored for one, other in zip(ones, stored[0], strict=True)):
        if one.shape != other.shape:
            raise TrimlineError(f"The tensor {one.name} of {folder} has shape {one.shape}, and {other.name} has {other.shape}.",
                                "Its config describes another model than its weights: give the config that its maker wrote for it.")  # fmt: skip
    rows = sum(part.shape[0] for part in stored[0] if part.shape)
    inside = (rows, *first.shape[1:]) if len(stored[0]) > 1 else first.shape
    shape = (len(stored), *inside) if new_axis else inside
    dtype = next((part.dtype for parts in stored for part in parts if part.dtype not in FLOATS), first.dtype)
    return Stacked(first.shard, first.name, shape, dtype, tuple(map(tuple, stored)), new_axis)


def file_names(geometry: Geometry) -> Iterator[str]:
    """Every name that files may have for what is called otherwise in memory."""
    for number, block in enumerate(geometry.blocks):
        for names in geometry.family.stored.values():
            for parts in part_names(geometry.family, number, names, block.experts):
                yield from parts


class InFiles(Mapping[str, torch.Tensor]):
    """Tensors by the names that a folder's files have for them.

    Args:
        tensors: by the names that the class has; each is asked for when it is wanted.
        geometry: of the model that they are of.
        as_before: names in memory, inside a block, that the folder's files have too.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], geometry: Geometry, as_before: frozenset[str] = frozenset()) -> None:
        self._tensors, self._geometry, family = tensors, geometry, geometry.family
        self._origins: dict[str, tuple[str, int, int, int]] = {}  # name in files to name in memory, expert, part, parts
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        stored = {memory: names for memory, names in family.stored.items() if memory not in as_before}
        for name in tensors:
            block, inside = _inside(family, name)
            if inside in stored:
                self._origins |= self._parts(name, block, stored[inside])
            else:
                self._origins[name] = name, -1, 0, 1

    def _parts(self, name: str, block: int, names: tuple[str, ...]) -> dict[str, tuple[str, int, int, int]]:
        stacked = "{}" in names[0]
        parts = part_names(self._geometry.family, block, names, self._geometry.blocks[block].experts)
        return {
            part: (name, expert if stacked else -1, place, len(names))
            for expert, found in enumerate(parts)
            for place, part in enumerate(found)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        memory, expert, place, parts = self._origins[name]
        if expert < 0 and parts == 1:
            return self._tensors[memory]
        whole = self._whole(memory)
        one = whole if expert < 0 else whole[expert]
        return one.chunk(parts)[place].clone() if parts > 1 else one.clone()

    def _whole(self, name: str) -> torch.Tensor:
        if name not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[name] = self._tensors[name]
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def _inside(family: Family, name: str) -> tuple[int, str]:
    """Block and name inside it; −1 and the whole name outside the blocks."""
    found = re.match(rf"{re.escape(family.blocks)}\.(\d+)\.(.*)", name)
    return (int(found[1]), found[2]) if found else (-1, name)


def names_in_files(held: Mapping[str, StoredTensor], family: Family) -> frozenset[str]:
    """Names in memory, inside a block, of ``Family.stored`` that files hold as they are."""
    return frozenset(
        inside for name, stored in held.items() if not isinstance(stored, Stacked) and (inside := _inside(family, name)[1]) in family.stored
    )
