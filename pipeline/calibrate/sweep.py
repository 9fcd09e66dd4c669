"""One pass over the blocks of a model, one block at a time, with every calibration window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from pipeline.architecture.families import Family, Sublayer
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.routed import RoutedStatistics, routed_outputs
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.common.events import Events
from pipeline.live.blocks import batches_of, blocks_of, brought, enter, linear_in
from pipeline.live.finite import demand_finite
from pipeline.live.once import unread
from pipeline.live.routing import experts_in


@torch.inference_mode()
def sweep(
    model: nn.Module, family: Family, windows: torch.Tensor, needs: Needs, events: Events, sequential: bool = False
) -> Iterator[tuple[int, BlockStatistics]]:
    """Yields (block number, its statistics) as the hidden states of all windows move from block to block.

    Every block is called with all the arguments that the model itself would give it, mask and rotary embeddings
    included, and sees the outputs of the blocks before it.

    Args:
        model: a causal language model in evaluation mode.
        family: its description.
        windows: token ids, shape (N, S).
        needs: what to collect.
        events: gets one progress step per block.
        sequential: whoever takes the block changes its weights; it then runs again, so that later blocks see that.

    Raises:
        TrimlineError: what a block gives, or what was collected of it, is not finite; names the tensor that is not, or the dtype.
    """
    states, arguments = enter(model, family, batches_of(windows))
    blocks = blocks_of(model, family)
    with events.progress(f"calibrating on {windows.numel():,} tokens", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            statistics = BlockStatistics(tokens=windows.numel(), sequences=len(windows))
            states, given = brought(block, states, [per_block[number] for per_block in arguments])
            entered = list(states) if sequential else []
            idle = sequential and not needs.distance  # what leaves the block counts once it was changed
            reader = family.reader(Sublayer.FFN) if idle and Sublayer.FFN in family.cuttable else None
            skipped = unread(block, reader.name) if reader and linear_in(block, reader) is not None else nullcontext()
            with skipped, _collecting(block, family, needs, statistics, states[0].device):
                for index, before in enumerate(states):
                    after = given[index].through(block, before)
                    if needs.distance:
                        statistics.compare(before, after)
                    states[index] = after
            demand_finite((*states, *statistics.tensors()), f"The activations of block {number}", model)
            advance(1)
            yield number, statistics
            for index, before in enumerate(entered):
                states[index] = given[index].through(block, before)
            if sequential:
                demand_finite(states, f"The activations of block {number}", model)


@contextmanager
def _collecting(block: nn.Module, family: Family, needs: Needs, statistics: BlockStatistics, device: torch.device) -> Iterator[None]:
    """Hooks on one projection per point, for as long as a block is measured."""
    with ExitStack() as hooks:
        for point in needs.points:
            reading = (linear_in(block, described) for described in family.reading(point))
            linear = next((found for found in reading if found is not None), None)
            if linear is None:  # a block of another kind
                continue
            zeros = InputStatistics.zeros(linear.in_features, point in needs.gram, device)
            if point in needs.fluctuation:
                zeros.fluctuation = Fluctuation.zeros(linear.in_features, device)
            statistics.inputs[point] = zeros
            handle = linear.register_forward_pre_hook(_adder(zeros, statistics.tokens // statistics.sequences))
            hooks.callback(handle.remove)
        if needs.routed and (experts := experts_in(block, family)):
            statistics.routed = routed = RoutedStatistics.zeros(experts, device)
            hooks.enter_context(
                routed_outputs(
                    block, family, lambda index, weights, outputs, logits: routed.add(index, weights, outputs, logits.float().softmax(-1))
                )
            )
        yield


def _adder(target: InputStatistics, length: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        target.add(inputs[0])
        if target.fluctuation is not None:  # some blocks flatten sequences before their FFN
            target.fluctuation.add(inputs[0].reshape(-1, length, inputs[0].shape[-1]))

    return add
