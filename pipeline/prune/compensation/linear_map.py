"""A linear map in place of blocks that go, merged into the FFN's last projection of the block before them.

ReplaceMe (arXiv 2505.02819, section 3): with M what the FFN of the last block before a run of blocks writes, Y the residual stream
without it, and L the stream behind the run, T = argmin ‖M T + Y − L‖² takes the place of the run. M T is what that FFN writes where
its last projection is T times what it was, so nothing is added to the model. Theirs is the plain squared error and one run of blocks.

Ours: a ridge that pulls T towards the identity, that is, towards blocks that are simply dropped; several runs, front to back, each on
what the pruned blocks before it give and towards the dense stream; and tokens that count relative to the size of their stream
(``weighted``), where a few with massive activations decide the plain fit. Their cosine objective, which has no closed form, is not here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family, Sublayer
from pipeline.architecture.spaces import channels
from pipeline.calibrate.statistics import token_weights
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.blocks import Arguments, batches_of, blocks_of, brought, enter, through_all
from pipeline.live.finite import demand_finite
from pipeline.live.once import noted
from pipeline.prune.compensation.towards_dense import Pull
from pipeline.prune.kronecker.factors import Damped
from pipeline.prune.model.shrinking import ShrinkingModel

PLAIN, WEIGHTED = "linear_map", "weighted_map"
MAPS = (PLAIN, WEIGHTED)  # as recipes name them


@dataclass(frozen=True)
class BlockRun:
    """Blocks that go together.

    Attributes:
        before: the last block that stays before them.
        blocks: that go, ascending.
    """

    before: int
    blocks: tuple[int, ...]


def check_map(family: Family) -> None:
    """Raises TrimlineError where a norm or a gate stands between the FFN's last projection and the stream: no map can be merged there."""
    if not family.adds(Sublayer.FFN):
        what = "gate" if family.mixture else "norm"
        raise TrimlineError(
            f"{family.model_type} has a {what} behind its FFN, so a linear map cannot be merged into the projection before it.",
            "Leave compensation out: the blocks are then dropped.",
        )


def runs_of(kept: Collection[int], left: Collection[int]) -> list[BlockRun]:
    """The runs of blocks of ``left`` that are not ``kept``; one before which nothing stays has no place for a map and is left out."""
    found, before = [], None
    for stays, blocks in groupby(sorted(left), key=lambda block: block in kept):
        run = tuple(blocks)
        if not stays and before is not None:
            found.append(BlockRun(before, run))
        before = run[-1] if stays else before
    return found


def linear_map(pull: Pull, damping: float) -> torch.Tensor:
    """T = I + D (G + λ)⁻¹, shape (H, H), fp64: minimises Σ w ‖T r − r − d‖² + λ ‖T − I‖², λ = damping × mean diagonal of G.

    Args:
        pull: over tokens, of what the projection writes, r, and of how far the stream lags behind, d: G = Σ w r rᵀ, D = Σ w d rᵀ.
        damping: relative ridge, > 0.
    """
    correction = torch.cholesky_solve(pull.cross.double().T, Damped.by(pull.gram(), damping).root()).T
    return torch.eye(len(correction), dtype=torch.float64, device=correction.device) + correction


@torch.inference_mode()
def merge_maps(
    model: ShrinkingModel, windows: torch.Tensor, kept: Collection[int], weighted: bool, damping: float, events: Events
) -> dict[str, Any]:
    """Merges a map for every run of blocks that is about to go; the blocks themselves stay for the caller to drop.

    One walk over the blocks: the dense stream goes through all of them, the pruned one past the runs.

    Args:
        model: with the blocks still there.
        windows: calibration tokens, shape (N, S).
        kept: blocks that stay.
        weighted: tokens count relative to the size of their stream.
        damping: relative ridge.
        events: progress.

    Returns:
        What a plan says: for every block whose FFN got a map, the blocks that it stands for, and the error left behind them, as a share of
        that of dropping them.

    Raises:
        TrimlineError: the block before a run has no FFN to merge a map into.
    """
    family = model.geometry.family
    runs = {run.before: run for run in runs_of(kept, model.selection.blocks)}
    for before in runs:
        if not model.selection.units(Sublayer.FFN)[before]:
            raise TrimlineError(f"Block {before} has no FFN, and a map for the blocks behind it would be merged into that.",
                                "Leave compensation out, or drop blocks in the first step.")  # fmt: skip
    gone = set(model.selection.blocks) - set(kept)
    states, arguments = enter(model.model, family, batches_of(windows))
    theirs, facts, open_run = states, {}, None
    ours: list[torch.Tensor] | None = None  # before the first run it is theirs
    with events.progress(f"fitting maps on {windows.numel():,} tokens", len(model.geometry.blocks)) as advance:
        for number, block in enumerate(blocks_of(model.model, family)):
            theirs, given = brought(block, theirs, [of_batch[number] for of_batch in arguments])
            entering = theirs if ours is None else brought(block, ours, [])[0]
            theirs = through_all(block, theirs, given)
            if number in runs:
                open_run = _Open(runs[number], *_written(block, model, entering, given))
                ours = open_run.after
            elif number in gone:
                ours = entering
            elif ours is not None:
                ours = through_all(block, entering, given)
            if open_run is not None and number == open_run.run.blocks[-1]:
                ours, facts[str(open_run.run.before)] = _closed(open_run, model, theirs, weighted, damping)
                open_run = None
            demand_finite((*(ours or ()), *theirs), f"The activations of block {number}", model.model)
            advance(1)
    return facts


@dataclass(frozen=True)
class _Open:
    """A run that the pruned stream waits behind.

    Attributes:
        run: its blocks.
        wrote: by the FFN's last projection of the block before it, per batch, (B, S, H).
        after: the stream that leaves that block.
    """

    run: BlockRun
    wrote: list[torch.Tensor]
    after: list[torch.Tensor]


def _closed(
    run: _Open, model: ShrinkingModel, theirs: list[torch.Tensor], weighted: bool, damping: float
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Fits and merges the map; what then is the stream behind the run."""
    times, width = model.multiplier(Sublayer.FFN), run.wrote[0].shape[-1]
    pull, dropped = Pull.zeros(width, width, run.wrote[0].device), 0.0
    for wrote, after, aim in zip(run.wrote, run.after, theirs, strict=True):
        lag = (aim.float() - after.float()).flatten(0, -2)
        weight = token_weights(aim.flatten(0, -2)) if weighted else torch.ones(len(lag), device=lag.device)
        pull.add(wrote.flatten(0, -2), lag / times, weight)
        dropped += float((weight * lag.square().sum(-1)).sum())
    found = linear_map(pull, damping)
    ours, left = [], 0.0
    for wrote, after, aim in zip(run.wrote, run.after, theirs, strict=True):
        mapped = (after.float() + times * (wrote.float() @ (found - torch.eye(width, device=found.device)).float().T)).to(after.dtype)
        ours.append(mapped)
        error = (aim.float() - mapped.float()).flatten(0, -2).square().sum(-1)
        left += float((error * (token_weights(aim.flatten(0, -2)) if weighted else 1)).sum())
    _merge(model, run.run.before, found.cpu())
    return ours, {"stands for": list(run.run.blocks), "error left": left / dropped if dropped else 0.0}


def _merge(model: ShrinkingModel, block: int, found: torch.Tensor) -> None:
    """T W and T b in the place of W and b."""
    reader = model.geometry.family.reader(Sublayer.FFN)
    columns = channels(model.selection.units(Sublayer.FFN)[block], model.geometry.unit_width(reader.columns))
    weight, bias = model.weight(block, reader.name).double()[:, columns], model.bias(block, reader.name)
    shift = None if bias is None else (found @ bias.double() - bias).float()
    model.update_reader(Sublayer.FFN, block, columns, (found @ weight).float(), shift)


def _written(
    block: nn.Module, model: ShrinkingModel, states: list[torch.Tensor], arguments: list[Arguments]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the FFN's last projection writes, and what leaves the block."""
    reader = block.get_submodule(model.geometry.family.reader(Sublayer.FFN).name)
    with noted(reader) as seen:
        after = through_all(block, states, arguments)
    return [wrote.view_as(state) for (_, wrote), state in zip(seen, after, strict=True)], after
