"""A sweep of the pruned model beside the dense one's streams, in which every block is cut and solved for anew."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from pipeline.architecture.families import Sublayer
from pipeline.architecture.spaces import SPACES, IndexSet, channels
from pipeline.calibrate.statistics import token_weights
from pipeline.common.events import Events
from pipeline.live.blocks import Arguments, batches_of, blocks_of, brought, enter, linear_in, through_all
from pipeline.live.finite import demand_finite
from pipeline.live.once import AttentionRun, noted, run_attention
from pipeline.prune.compensation.dense_streams import DenseStreams
from pipeline.prune.compensation.towards_dense import Pull, best_damping, towards_dense
from pipeline.prune.model.shrinking import ShrinkingModel


@torch.inference_mode()
def refit(
    model: ShrinkingModel,
    streams: DenseStreams,
    windows: torch.Tensor,
    stays: Mapping[IndexSet, tuple[int, ...]],
    share: float,
    damping: float | None,
    events: Events,
) -> None:
    """Removes what is not in ``stays`` and refits every reader, block by block, on what the refitted blocks before it give.

    Each block runs once: as far as the end of its attention, to fit its reader, and from there on what the new reader gives. The dense one
    runs only where its streams are not known, before it is cut. Where a norm stands between a reader and the stream, the reader
    is fitted to what it writes in the dense block instead of to the stream.

    Args:
        model: the pruned model so far; dense where ``streams`` are not whole.
        streams: of the model that it comes from, on the same windows.
        windows: calibration tokens, shape (N, S).
        stays: the units of every sublayer that stay.
        share: how much of the lag behind the dense residual stream a reader makes up for.
        damping: relative ridge; None chooses one per reader, by what half of the tokens says of a fit on the other half.
        events: gets one progress step per block.
    """
    family = model.geometry.family
    ours, arguments = enter(model.model, family, batches_of(windows))
    theirs = None if streams.is_whole else list(ours)
    fit = _Fit(model, share, damping)
    with events.progress(f"refitting on {windows.numel():,} tokens", len(model.geometry.blocks)) as advance:
        for number, block in enumerate(blocks_of(model.model, family)):
            ours, given = brought(block, ours, [per_block[number] for per_block in arguments])
            if theirs is not None:
                theirs, _ = brought(block, theirs, given)
                pairs = enumerate(zip(theirs, given, strict=True))
                theirs = [streams.run(number, index, block, hidden, arguments) for index, (hidden, arguments) in pairs]
            if number in model.selection.blocks:
                ours = _through_fitted(_Block(number, block, given, streams), ours, fit, stays)
            else:
                ours = through_all(block, ours, given)
            demand_finite((*ours, *(theirs or ())), f"The activations of block {number}", model.model)
            advance(1)
    streams.is_whole = True


@dataclass(frozen=True)
class _Block:
    """A block of the pruned model: its number, its arguments per batch, and the dense streams."""

    number: int
    module: nn.Module
    arguments: list[Arguments]
    streams: DenseStreams


def _through_fitted(at: _Block, states: list[torch.Tensor], fit: _Fit, stays: Mapping[IndexSet, tuple[int, ...]]) -> list[torch.Tensor]:
    """Cuts and fits both sublayers of a block; what leaves it then, per batch."""
    attention, ffn = (stays.get(IndexSet(SPACES[kind], at.number), ()) for kind in (Sublayer.ATTENTION, Sublayer.FFN))
    family = fit.model.geometry.family
    runs: list[AttentionRun | None] = [None] * len(states)
    wrote: list[torch.Tensor | None] = [None] * len(states)
    if attention:
        reader = family.reader(Sublayer.ATTENTION).name
        pairs = zip(states, at.arguments, strict=True)
        runs = [run_attention(at.module, reader, hidden, given) for hidden, given in pairs]
        reads = [
            _Read(fit, Sublayer.ATTENTION, run.inputs, run.wrote, hidden.float(), hidden)
            for run, hidden in zip(runs, states, strict=True)
            if run is not None
        ]
        wrote = list(fit(at, Sublayer.ATTENTION, attention, reads))
    else:
        fit.model.keep_units(Sublayer.ATTENTION, at.number, ())
    if not ffn:
        fit.model.keep_units(Sublayer.FFN, at.number, ())
    seen = [_behind_attention(at, fit, index, hidden, runs[index], wrote[index]) for index, hidden in enumerate(states)]
    afters = [after for after, _ in seen]
    if not ffn:
        return afters
    reads = [read for _, read in seen if read is not None]
    del seen
    new = fit(at, Sublayer.FFN, ffn, reads)
    if not family.adds(Sublayer.FFN):  # what a norm makes of it
        return [_behind_attention(at, fit, i, hidden, runs[i], wrote[i])[0] for i, hidden in enumerate(states)]
    return [read.behind(written) for read, written in zip(reads, new, strict=True)]


def _behind_attention(
    at: _Block, fit: _Fit, index: int, hidden: torch.Tensor, run: AttentionRun | None, wrote: torch.Tensor | None
) -> tuple[torch.Tensor, _Read | None]:
    """Runs the block on from what its fitted attention gives: what leaves it, and what the FFN's reader read, where it has one."""
    family = fit.model.geometry.family
    known = nullcontext() if run is None or wrote is None else run.standing_in(at.module, family.reader(Sublayer.ATTENTION).name, wrote)
    reader = linear_in(at.module, family.reader(Sublayer.FFN)) if Sublayer.FFN in family.cuttable else None
    with known, noted(reader) as seen:
        after = at.arguments[index].through(at.module, hidden)
    if not seen:
        return after, None
    inputs, written = seen[0]
    without = after.float() - fit.model.multiplier(Sublayer.FFN) * written.view_as(after).float()
    return after, _Read(fit, Sublayer.FFN, inputs, written, without, hidden)


class _Read:
    """What a reader read and wrote in one batch, before its units go.

    Attributes:
        inputs: shape (tokens, columns); once it is fitted, the columns that stay.
        wrote: shape (tokens, H).
        without: the residual stream but for what the reader adds to it, shape (B, S, H), fp32; zeros where a norm stands between, so
            that nothing but the reader decides what comes of it.
        dtype: of the stream.
        multiplier: of what the reader writes.
    """

    def __init__(
        self, fit: _Fit, sublayer: Sublayer, inputs: torch.Tensor, wrote: torch.Tensor, without: torch.Tensor, like: torch.Tensor
    ) -> None:
        adds = fit.model.geometry.family.adds(sublayer)
        self.inputs, self.wrote = inputs.flatten(0, -2), wrote.flatten(0, -2)
        self.without = without if adds else torch.zeros_like(without)
        self.dtype, self.multiplier = like.dtype, fit.model.multiplier(sublayer) if adds else 1.0

    def behind(self, wrote: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the reader that writes this (tokens, H); where a norm stands between, just that."""
        return (self.without + self.multiplier * wrote.view_as(self.without)).to(self.dtype)

    def lag(self, aim: torch.Tensor) -> torch.Tensor:
        """What the reader would have to write besides, shape (tokens, H)."""
        return ((aim.float() - self.behind(self.wrote).float()) / self.multiplier).flatten(0, -2)


@dataclass
class _Fit:
    """Fits readers; of each kind it begins with the ridge that the block before chose.

    Attributes:
        model: the pruned model.
        share, damping: as of ``refit``.
    """

    model: ShrinkingModel
    share: float
    damping: float | None
    _chosen: dict[Sublayer, float] = field(default_factory=dict)

    def __call__(self, at: _Block, sublayer: Sublayer, units: tuple[int, ...], reads: list[_Read]) -> list[torch.Tensor]:
        """Solves for the reader of the units that stay and removes the others; what it writes now, per batch."""
        model, block = self.model, at.number
        linear = model.geometry.family.reader(sublayer)
        width = model.geometry.unit_width(linear.columns)
        left, stay = (channels(some, width) for some in (model.selection.units(sublayer)[block], units))
        gone = left[~torch.isin(left, stay)]
        weight, biased = model.weight(block, linear.name), model.has_bias(linear)
        halves = self._pulls(at, sublayer, reads, stay, gone, weight)
        chosen = self.damping
        if chosen is None:
            chosen = self._chosen[sublayer] = best_damping(halves, biased, self._chosen.get(sublayer))
        device = halves[0].upper.device
        solved, shift = towards_dense(weight[:, stay].to(device), halves[0] + halves[1], chosen, biased)
        model.update_reader(sublayer, block, stay, solved, shift)
        model.keep_units(sublayer, block, units)
        live = at.module.get_submodule(linear.name)
        assert isinstance(live, nn.Linear)
        kept = live.weight[:, stay.to(live.weight.device)]
        return [nn.functional.linear(read.inputs, kept, live.bias) for read in reads]

    def _pulls(
        self, at: _Block, sublayer: Sublayer, reads: list[_Read], stay: torch.Tensor, gone: torch.Tensor, weight: torch.Tensor
    ) -> tuple[Pull, Pull]:
        """On either half of every batch. Of what was read only the columns that stay are kept."""
        device = reads[0].inputs.device
        stay, gone = stay.to(device), gone.to(device)
        lost = weight.to(device)[:, gone]
        halves = [Pull.zeros(len(weight), len(stay), device) for _ in range(2)]
        for index, read in enumerate(reads):
            aim = at.streams.aim(at.number, sublayer, index).to(device)
            missing = torch.addmm(read.lag(aim), read.inputs[:, gone].float(), lost.T, beta=self.share)
            read.inputs = read.inputs[:, stay]
            weights = token_weights(aim.flatten(0, -2))
            middle = len(weights) // 2
            for half, part in zip(halves, (slice(None, middle), slice(middle, None)), strict=True):
                half.add(read.inputs[part], missing[part], weights[part])
        return halves[0], halves[1]
