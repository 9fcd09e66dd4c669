"""Blocks merged into one: which tensors of which blocks are added up, in the live model for a trial and in the plan for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError
from pipeline.live.blocks import blocks_of, standing_in
from pipeline.prune.model.shrinking import ShrinkingModel

Rule = Literal["released", "equation"]


@dataclass(frozen=True)
class Collapsed:
    """One block of the result.

    Attributes:
        base: original number of the block whose place it takes.
        covers: original numbers of the blocks that it stands for, ascending.
        mix: pairs of an original block and the coefficient of its tensors.
    """

    base: int
    covers: tuple[int, ...]
    mix: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, block: int) -> Collapsed:
        return cls(block, (block,), ((block, 1),))

    @property
    def changed(self) -> bool:
        return self.mix != ((self.base, 1),)


def collapse(blocks: Sequence[Collapsed], rule: Rule) -> Collapsed:
    """The first block with the others merged into it: equation 1, or what the released code computes."""
    base, others = blocks[0], blocks[1:]
    covers = tuple(number for block in blocks for number in block.covers)
    if rule == "released":
        return Collapsed(base.base, covers, others[-1].mix)
    total: Counter[int] = Counter()
    for block in blocks:
        for number, coefficient in block.mix:
            total[number] += coefficient * (1 - len(others) if block is base else 1)
    return Collapsed(base.base, covers, tuple(sorted((number, c) for number, c in total.items() if c)))


def mixed(collapsed: Collapsed, tensor: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Σ coefficient × tensor of that block, fp32."""
    return torch.stack([coefficient * tensor(number).float() for number, coefficient in collapsed.mix]).sum(dim=0)


@contextmanager
def collapsed_live(model: ShrinkingModel, blocks: Sequence[Collapsed], rule: Rule) -> Iterator[None]:
    """The live model with ``blocks`` in place of its own; afterwards it is as before."""
    live = blocks_of(model.model, model.geometry.family)
    gone = [live[number] for number in model.selection.blocks if number not in {block.base for block in blocks}]
    with ExitStack() as undo, standing_in(nn.ModuleList(gone), lambda hidden, *_, **__: hidden, model.geometry.family):
        if model.paging is not None:
            undo.enter_context(model.paging.also(partial(_collapse_read, model, blocks, rule)))
            yield
            return
        for block in blocks:
            for name in tensor_names(model.geometry, rule) if block.changed else ():
                tensor = live[block.base].get_parameter(name)
                value = mixed(block, lambda number, name=name: live[number].get_parameter(name).data)  # type: ignore[misc]
                undo.callback(setattr, tensor, "data", tensor.data)
                tensor.data = value.to(tensor)
        yield


def _collapse_read(model: ShrinkingModel, blocks: Sequence[Collapsed], rule: Rule, number: int) -> None:
    """Merges into a paged block, which was just read, the others that it stands for."""
    family, live = model.geometry.family, blocks_of(model.model, model.geometry.family)[number]
    for block in (block for block in blocks if block.base == number and block.changed):
        for name in tensor_names(model.geometry, rule):
            tensor = live.get_parameter(name)
            tensor.data.copy_(mixed(block, lambda other, name=name, like=tensor: model.tensor(family.module(other, name)).to(like)))  # type: ignore[misc]
        model.silence(number)


def tensor_names(geometry: Geometry, rule: Rule) -> Iterator[str]:
    """What is merged, by its name inside a block: everything by equation 1, the projections by the released code."""
    family = geometry.family
    alike = geometry.blocks[0]
    for linear, _ in geometry.linears(alike):
        yield from (f"{linear.name}.weight", f"{linear.name}.bias") if geometry.has_bias(linear) else (f"{linear.name}.weight",)
    for norm in family.norms if rule == "equation" else ():
        if alike.holds(norm):
            yield from (f"{norm.name}.weight", f"{norm.name}.bias") if norm.bias else (f"{norm.name}.weight",)
    yield from (carried.name for carried, _ in geometry.carried(alike) if rule == "equation" and carried.trained)


def check_alike(model: ShrinkingModel) -> None:
    """Whether tensors of all blocks can be added up.

    Raises:
        TrimlineError: blocks keep other units, or an earlier step gave projections biases.
    """
    selection, kinds = model.selection, [(block.mixer, block.feeds) for block in model.geometry.blocks]
    first = selection.blocks[0]
    if other := next((number for number, kind in enumerate(kinds) if kind != kinds[0]), None):
        raise TrimlineError(f"LaCo adds up tensors of blocks, and block {other} is of another kind than block 0.",
                            "Remove whole blocks by another method, such as block_influence.")  # fmt: skip
    for block in selection.blocks:
        if (selection.ffn[block], selection.kv_groups[block]) != (selection.ffn[first], selection.kv_groups[first]):
            raise TrimlineError(f"LaCo adds up tensors of blocks, and block {block} keeps other units than block {first}.",
                                "Collapse blocks in the first step, then remove units.")  # fmt: skip
    if model.biases:
        raise TrimlineError(
            "LaCo adds up tensors of blocks, and an earlier step gave them new biases.", "Collapse blocks in the first step."
        )


def apply(model: ShrinkingModel, blocks: Sequence[Collapsed], rule: Rule) -> None:
    """Writes the merged tensors, from the exact weights, and drops the other blocks."""
    family = model.geometry.family
    for block in blocks:
        names = list(tensor_names(model.geometry, rule)) if block.changed else []
        values = [mixed(block, lambda number, name=name: model.tensor(family.module(number, name))) for name in names]  # type: ignore[misc]
        for name, value in zip(names, values, strict=True):
            model.replace(family.module(block.base, name), value)
    model.keep_blocks([block.base for block in blocks])
