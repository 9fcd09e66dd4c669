"""A sweep of the pruned and the dense model side by side, in which every block of the pruned one is cut and solved for anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.calibrate.sweep import Arguments, batches_of, blocks_of, enter
from pipeline.compensation.towards_dense import Pull, token_weights, towards_dense
from pipeline.events import Events
from pipeline.families import Axis, Sublayer
from pipeline.shrinking import ShrinkingModel

Kept = Mapping[tuple[Sublayer, int], tuple[int, ...]]
ORDER = (Sublayer.ATTENTION, Sublayer.FFN)  # as a block computes them


@torch.inference_mode()
def refit(model: ShrinkingModel, dense: nn.Module, windows: torch.Tensor, kept: Kept, share: float, damping: float, events: Events) -> None:
    """Removes what is not in ``kept`` and refits every reader, block by block, on what the refitted blocks before it give.

    Each block runs once in the dense model and three times in the pruned one: to fit the attention's reader, to fit the
    FFN's on what the new attention gives, and to go on.

    Args:
        model: the pruned model so far.
        dense: the model it comes from, same dtype and device.
        windows: calibration tokens, shape (N, S).
        kept: per sublayer and original block, the units that stay.
        share: how much of the lag behind the dense residual stream a reader makes up for.
        damping: relative ridge.
        events: gets one progress step per block.
    """
    family, batches = model.geometry.family, batches_of(windows)
    ours, arguments = enter(model.model, family, batches)
    theirs, _ = enter(dense, family, batches)
    pairs = zip(blocks_of(model.model, family), blocks_of(dense, family), strict=True)
    with events.progress(f"refitting on {windows.numel():,} tokens", len(model.geometry.blocks)) as advance:
        for number, (block, original) in enumerate(pairs):
            given = [per_block[number] for per_block in arguments]
            targets = _dense_streams(original, family.reader(Sublayer.ATTENTION).name, theirs, given)
            theirs = [after for _, after in targets]
            if number in model.selection.blocks:
                for sublayer in ORDER:
                    aims = [middle if sublayer is Sublayer.ATTENTION else after for middle, after in targets]
                    units = kept[sublayer, number]
                    if units:
                        pull = _measured(block, model, sublayer, ours, given, aims)
                        _solve(model, sublayer, number, units, pull, share, damping)
                    model.keep_units(sublayer, number, units)
            ours = [block(hidden, **kept_arguments) for hidden, kept_arguments in zip(ours, given, strict=True)]
            advance(1)


def _dense_streams(
    block: nn.Module, reader: str, states: list[torch.Tensor], arguments: list[Arguments]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The residual stream of the dense block after its attention and after its FFN, per batch."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for hidden, given in zip(states, arguments, strict=True):
        wrote: list[torch.Tensor] = []
        with _hooked(block.get_submodule(reader), lambda _, __, output, wrote=wrote: wrote.append(output)):
            after = block(hidden, **given)
        found.append((hidden + wrote[0].view_as(hidden), after))
    return found


def _measured(
    block: nn.Module,
    model: ShrinkingModel,
    sublayer: Sublayer,
    states: list[torch.Tensor],
    arguments: list[Arguments],
    aims: list[torch.Tensor],
) -> Pull:
    """What a reader reads in the pruned block, and how far the stream behind it lags."""
    reader = block.get_submodule(model.geometry.family.reader(sublayer).name)
    assert isinstance(reader, nn.Linear)
    pull = Pull.zeros(reader.out_features, reader.in_features, reader.weight.device)
    for hidden, given, aim in zip(states, arguments, aims, strict=True):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        with _hooked(reader, lambda _, inputs, output, seen=seen: seen.append((inputs[0], output))):
            after = block(hidden, **given)
        stream = hidden + seen[0][1].view_as(hidden) if sublayer is Sublayer.ATTENTION else after
        lag = (aim.float() - stream.float()).flatten(0, -2)
        pull.add(seen[0][0].flatten(0, -2), lag, token_weights(aim.flatten(0, -2)))
    return pull


def _solve(model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], pull: Pull, share: float, damping: float) -> None:
    """Over the columns that are left now, of which ``units`` stay."""
    geometry = model.geometry
    linear = geometry.family.reader(sublayer)
    width = geometry.unit_width(Axis.FFN if sublayer is Sublayer.FFN else Axis.QUERY)
    left, stay = (channels(some, width) for some in (model.selection.units(sublayer)[block], units))
    here = Pull(pull.upper[left][:, left], pull.cross[:, left], pull.inputs[left], pull.lag, pull.weight)
    weight, shift = towards_dense(
        model.weight(block, linear.name)[:, left].to(pull.upper.device),
        here,
        torch.isin(left, stay).nonzero().flatten().to(pull.upper.device),
        share,
        damping,
        biased=geometry.has_bias(linear),
    )
    model.update_reader(sublayer, block, stay, weight, shift)


def channels(units: tuple[int, ...], width: int) -> torch.Tensor:
    """Unit numbers into channel numbers, shape (units × width,)."""
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
