"""Gradients of the loss, block by block from the last to the first, with one block's graph in memory at a time.

A forward pass without gradients keeps what entered every block. Then each block runs once more with gradients, from
the last to the first, and hands the gradient at its input to the block before it.

The loss of a sequence is the mean cross-entropy of its S − 1 predictions (transformers' convention), and every gradient
is that of its own sequence's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.architecture.families import Family
from pipeline.calibrate.block_gradients import SCALE, Tally
from pipeline.calibrate.needs import GradientNeeds
from pipeline.calibrate.statistics import BlockGradients, token_weights
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.blocks import Arguments, batches_of, blocks_of, brought, enter, logits_from
from pipeline.live.finite import demand_finite
from pipeline.tensors.saved_states import SavedStates, saved_states

__all__ = ["BlockGradients", "GradientNeeds", "gradient_sweep", "run_block"]

HEAD_TOKENS = 512  # logits of so many tokens at a time: 100 MB in fp32 at a vocabulary of 49,152


Run = Callable[[int, int, nn.Module, torch.Tensor, Arguments], torch.Tensor]  # block number, batch number, block, what enters it, arguments


def run_block(number: int, index: int, block: nn.Module, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """What leaves a block."""
    return arguments.through(block, hidden)


def gradient_sweep(
    model: nn.Module,
    family: Family,
    windows: torch.Tensor,
    needs: GradientNeeds,
    events: Events,
    limit: int | None = None,
    run: Run = run_block,
) -> Iterator[tuple[int, BlockGradients]]:
    """Yields (block number, its gradients), the last block first.

    What whoever takes a block does to its weights changes nothing in the blocks that follow. Gradients can be larger than the
    block: who is done with them should let go of them before asking for the next. Between the blocks the
    model is in evaluation mode and no parameter requires a gradient; afterwards both are as before.

    Args:
        model: a causal language model.
        family: its description.
        windows: token ids, shape (N, S).
        needs: what to collect.
        events: gets two progress steps per block, one on the way forward and one on the way back.
        limit: bytes of what entered the blocks that stay in memory, 1 GiB at most; the rest waits in a file.
        run: runs a block on a batch on the way forward, and may note what it gives.

    Raises:
        TrimlineError: a window has no token to predict, or activations or gradients are not finite; names the block,
            and the tensor or the dtype.
        OSError: the disk is full.
    """
    if windows.shape[1] < 2:
        raise TrimlineError("The calibration windows are one token long, and a loss needs one to predict.", "Give longer windows.")
    blocks, batches = blocks_of(model, family), batches_of(windows)
    text = f"gradients on {windows.numel():,} tokens"
    with _frozen(model), saved_states(limit) as saved, events.progress(text, 2 * len(blocks)) as advance:
        weights: dict[tuple[int, int], torch.Tensor] = {}

        def noting(number: int, index: int, block: nn.Module, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
            after = run(number, index, block, hidden, arguments)
            if needs.relative:
                weights[number, index] = token_weights(after.flatten(0, -2))
            return after

        states, arguments = _forward(model, family, batches, saved, advance, noting)
        upstream = [_loss_gradient(model, family, hidden, batch) for hidden, batch in zip(states, batches, strict=True)]
        del states
        for number in reversed(range(len(blocks))):
            tally = Tally(family, needs, blocks[number])
            upstream, given = brought(blocks[number], upstream, [per_block[number] for per_block in arguments])
            for index, gradient in enumerate(upstream):
                upstream[index] = tally.through(saved.take((number, index)), given[index], gradient, weights.pop((number, index), None))
            found = tally.gradients(windows)
            demand_finite((*found.tensors(), *upstream), f"The gradients of block {number}", model)
            advance(1)
            yield number, found
            del found, tally  # whoever took them may have let go by now, and the next block's come to as much


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter that requires a gradient, for as long as it lasts."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()
        for module in training:
            module.training = True


@torch.no_grad()
def _forward(
    model: nn.Module, family: Family, batches: tuple[torch.Tensor, ...], saved: SavedStates, advance: Callable[[int], None], run: Run
) -> tuple[list[torch.Tensor], list[list[Arguments]]]:
    """What leaves the last block, per batch, and the arguments of every block; what enters each block is saved."""
    states, arguments = enter(model, family, batches)
    for number, block in enumerate(blocks_of(model, family)):
        states, given = brought(block, states, [per_block[number] for per_block in arguments])
        for index, before in enumerate(states):
            saved.put((number, index), before)
            states[index] = run(number, index, block, before, given[index])
        demand_finite(states, f"The activations of block {number}", model)
        advance(1)
    return states, arguments


def _loss_gradient(model: nn.Module, family: Family, hidden: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """SCALE times the gradient of each sequence's loss at what leaves the last block; ``hidden`` and result (B, S, H)."""
    rows, targets = hidden[:, :-1].flatten(0, 1), windows[:, 1:].flatten().to(hidden.device)
    share = SCALE / (windows.shape[1] - 1)
    parts = [
        _head_gradient(model, family, some, target, share)
        for some, target in zip(rows.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    ]
    gradient = torch.zeros_like(hidden)
    gradient[:, :-1] = torch.cat(parts).view_as(gradient[:, :-1])
    return gradient


def _head_gradient(model: nn.Module, family: Family, rows: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
    """``share`` times the gradient of the summed cross-entropy at ``rows`` (T, H); targets (T,).

    The model itself turns rows into logits, whatever it has behind its blocks. Every row is a sequence of its own,
    because a table of positions may be shorter than T.
    """
    hidden = rows.detach()[:, None].requires_grad_()
    with torch.enable_grad():
        logits = logits_from(model, family, targets[:, None], hidden)[:, 0]
    slope = logits.detach().float().softmax(-1)
    slope[torch.arange(len(slope), device=slope.device), targets] -= 1
    (gradient,) = torch.autograd.grad(logits, hidden, (slope * share).to(logits.dtype))
    return gradient[:, 0]
