"""A sweep of the pruned and the dense model side by side, in which every block of the pruned one is cut and solved for anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.architecture.families import Sublayer
from pipeline.architecture.spaces import SPACES, IndexSet, channels
from pipeline.common.events import Events
from pipeline.live.blocks import Arguments, batches_of, blocks_of, brought, enter, linear_in
from pipeline.live.finite import demand_finite
from pipeline.prune.compensation.towards_dense import Pull, best_damping, token_weights, towards_dense
from pipeline.prune.model.shrinking import ShrinkingModel


@torch.inference_mode()
def refit(
    model: ShrinkingModel,
    dense: nn.Module,
    windows: torch.Tensor,
    stays: Mapping[IndexSet, tuple[int, ...]],
    share: float,
    damping: float | None,
    events: Events,
) -> None:
    """Removes what is not in ``stays`` and refits every reader, block by block, on what the refitted blocks before it give.

    Each block runs once in the dense model. In the pruned one it runs as far as the attention's reader, to fit that, and
    once whole, to fit the FFN's on what the new attention gives; what leaves the block follows from that. Where a norm stands
    between a reader and the stream, the reader is fitted to what it writes in the dense block instead of to the stream.

    Args:
        model: the pruned model so far.
        dense: the model it comes from, same dtype and device.
        windows: calibration tokens, shape (N, S).
        stays: the units of every sublayer that stay.
        share: how much of the lag behind the dense residual stream a reader makes up for.
        damping: relative ridge; None chooses one per reader, by what half of the tokens says of a fit on the other half.
        events: gets one progress step per block.
    """
    family, batches = model.geometry.family, batches_of(windows)
    ours, arguments = enter(model.model, family, batches)
    theirs, _ = enter(dense, family, batches)
    pairs = zip(blocks_of(model.model, family), blocks_of(dense, family), strict=True)
    with events.progress(f"refitting on {windows.numel():,} tokens", len(model.geometry.blocks)) as advance:
        for number, (block, original) in enumerate(pairs):
            given = [per_block[number] for per_block in arguments]
            (ours, given), (theirs, _) = brought(block, ours, given), brought(original, theirs, given)
            aims, theirs = _dense_aims(original, model, theirs, given)
            if number in model.selection.blocks:
                attention, ffn = (stays[IndexSet(SPACES[kind], number)] for kind in (Sublayer.ATTENTION, Sublayer.FFN))
                reads = _reads_of_attention(block, model, ours, given) if attention else []
                _fit(model, Sublayer.ATTENTION, number, attention, reads, aims[Sublayer.ATTENTION], share, damping)
                reads = _reads_of_ffn(block, model, ours, given) if ffn else []
                _fit(model, Sublayer.FFN, number, ffn, reads, aims[Sublayer.FFN], share, damping)
                added = reads and family.adds(Sublayer.FFN)
                ours = [read.output() for read in reads] if added else _through(block, ours, given)
            else:
                ours = _through(block, ours, given)
            demand_finite((*ours, *theirs), f"The activations of block {number}", model.model)
            advance(1)


def _dense_aims(
    block: nn.Module, model: ShrinkingModel, states: list[torch.Tensor], arguments: list[Arguments]
) -> tuple[dict[Sublayer, list[torch.Tensor]], list[torch.Tensor]]:
    """What is to come of each sublayer, as ``_Read.output`` of the dense block, per batch; and what leaves the block."""
    family, times = model.geometry.family, multiplier(model, Sublayer.ATTENTION)
    aims: dict[Sublayer, list[torch.Tensor]] = {sublayer: [] for sublayer in Sublayer}
    afters = []
    for hidden, given in zip(states, arguments, strict=True):
        wrote: dict[Sublayer, torch.Tensor] = {}
        with ExitStack() as hooks:
            for sublayer in family.cuttable:
                note = lambda _, __, output, sublayer=sublayer, wrote=wrote: wrote.__setitem__(sublayer, output)  # noqa: E731
                if (reader := linear_in(block, family.reader(sublayer))) is not None:
                    hooks.enter_context(_hooked(reader, note))
            afters.append(given.through(block, hidden))
        for sublayer, output in wrote.items():
            stream = afters[-1] if sublayer is Sublayer.FFN else hidden + times * output.view_as(hidden)
            aims[sublayer].append(stream if family.adds(sublayer) else output.view_as(hidden))
    return aims, afters


def multiplier(model: ShrinkingModel, sublayer: Sublayer) -> float:
    """What the stream takes of a sublayer's output."""
    return model.geometry.family.multiplier(sublayer, model.checkpoint.config)


@dataclass(frozen=True)
class _Read:
    """What a reader read in one batch.

    Attributes:
        reader: the projection.
        inputs: shape (tokens, columns).
        without: the residual stream but for what the reader adds to it, shape (B, S, H), fp32; zeros where a norm stands between, so
            that nothing but the reader decides what comes of it.
        dtype: of the stream.
        multiplier: of what the reader writes.
    """

    reader: nn.Linear
    inputs: torch.Tensor
    without: torch.Tensor
    dtype: torch.dtype
    multiplier: float

    def output(self) -> torch.Tensor:
        """The residual stream behind the reader as it is now; where a norm stands between, what the reader writes."""
        return (self.without + self.multiplier * self.reader(self.inputs).view_as(self.without)).to(self.dtype)

    def lag(self, aim: torch.Tensor) -> torch.Tensor:
        """What the reader would have to write besides, shape (tokens, H)."""
        return ((aim.float() - self.output().float()) / self.multiplier).flatten(0, -2)


def _read(
    model: ShrinkingModel, sublayer: Sublayer, reader: nn.Linear, inputs: torch.Tensor, without: torch.Tensor, like: torch.Tensor
) -> _Read:
    if model.geometry.family.adds(sublayer):
        return _Read(reader, inputs.flatten(0, -2), without, like.dtype, multiplier(model, sublayer))
    return _Read(reader, inputs.flatten(0, -2), torch.zeros_like(without), like.dtype, 1.0)


class _Enough(Exception):
    """Ends a block's forward pass where nothing behind is needed."""


def _reads_of_attention(block: nn.Module, model: ShrinkingModel, states: list[torch.Tensor], arguments: list[Arguments]) -> list[_Read]:
    found, reader = [], _reader(block, model, Sublayer.ATTENTION)

    def stop(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Enough

    for hidden, given in zip(states, arguments, strict=True):
        seen: list[torch.Tensor] = []
        with reader.register_forward_pre_hook(stop), suppress(_Enough):
            given.through(block, hidden)
        found.append(_read(model, Sublayer.ATTENTION, reader, seen[0], hidden.float(), hidden))
    return found


def _reads_of_ffn(block: nn.Module, model: ShrinkingModel, states: list[torch.Tensor], arguments: list[Arguments]) -> list[_Read]:
    found, reader, times = [], _reader(block, model, Sublayer.FFN), multiplier(model, Sublayer.FFN)
    for hidden, given in zip(states, arguments, strict=True):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        with _hooked(reader, lambda _, inputs, output, seen=seen: seen.append((inputs[0], output))):
            after = given.through(block, hidden)
        inputs, wrote = seen[0]
        without = after.float() - times * wrote.view_as(after).float()
        found.append(_read(model, Sublayer.FFN, reader, inputs, without, hidden))
    return found


def _reader(block: nn.Module, model: ShrinkingModel, sublayer: Sublayer) -> nn.Linear:
    reader = block.get_submodule(model.geometry.family.reader(sublayer).name)
    assert isinstance(reader, nn.Linear)
    return reader


def _through(block: nn.Module, states: list[torch.Tensor], arguments: list[Arguments]) -> list[torch.Tensor]:
    return [given.through(block, hidden) for hidden, given in zip(states, arguments, strict=True)]


def _fit(
    model: ShrinkingModel,
    sublayer: Sublayer,
    block: int,
    units: tuple[int, ...],
    reads: Sequence[_Read],
    aims: Sequence[torch.Tensor],
    share: float,
    damping: float | None,
) -> None:
    """Solves for the reader of the units that stay, if any, and removes the others."""
    if reads:
        _solve(model, sublayer, block, units, _pulls(reads, aims), share, damping)
    model.keep_units(sublayer, block, units)


def _pulls(reads: Sequence[_Read], aims: Sequence[torch.Tensor]) -> tuple[Pull, Pull]:
    """What a reader reads in the pruned block, and how far what comes of it lags, on either half of every batch."""
    reader = reads[0].reader
    halves = [Pull.zeros(reader.out_features, reader.in_features, reader.weight.device) for _ in range(2)]
    for read, aim in zip(reads, aims, strict=True):
        lag = read.lag(aim)
        weight = token_weights(aim.flatten(0, -2))
        middle = len(weight) // 2
        for half, part in zip(halves, (slice(None, middle), slice(middle, None)), strict=True):
            half.add(read.inputs[part], lag[part], weight[part])
    return halves[0], halves[1]


def _solve(
    model: ShrinkingModel,
    sublayer: Sublayer,
    block: int,
    units: tuple[int, ...],
    halves: tuple[Pull, Pull],
    share: float,
    damping: float | None,
) -> None:
    """Over the columns that are left now, of which ``units`` stay."""
    geometry = model.geometry
    linear = geometry.family.reader(sublayer)
    width = geometry.unit_width(linear.columns)
    left, stay = (channels(some, width) for some in (model.selection.units(sublayer)[block], units))
    first, second = (half.of(left) for half in halves)
    weight = model.weight(block, linear.name)[:, left].to(first.upper.device)
    kept = torch.isin(left, stay).nonzero().flatten().to(first.upper.device)
    biased = model.has_bias(linear)
    if damping is None:
        damping = best_damping(weight, (first, second), kept, share, biased)
    weight, shift = towards_dense(weight, first + second, kept, share, damping, biased)
    model.update_reader(sublayer, block, stay, weight, shift)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
