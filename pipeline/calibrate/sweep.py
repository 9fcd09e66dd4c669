"""One pass over the blocks of a model, one block at a time, with every calibration window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import find_device, send_to_device
from torch import nn

from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics, Needs
from pipeline.events import Events
from pipeline.families import Family

BATCH_TOKENS = 2048
Arguments = dict[str, Any]


def blocks_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The list of decoder blocks of a causal language model."""
    found = model.get_submodule(family.blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def batches_of(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Windows (N, S) in batches of about ``BATCH_TOKENS`` tokens."""
    return windows.split(max(1, BATCH_TOKENS // windows.shape[1]))


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
    """
    states, arguments = enter(model, family, batches_of(windows))
    blocks = blocks_of(model, family)
    with events.progress(f"calibrating on {windows.numel():,} tokens", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            statistics = BlockStatistics(tokens=windows.numel(), sequences=len(windows))
            states, given = brought(block, states, [per_block[number] for per_block in arguments])
            entered = list(states) if sequential else []
            with _collecting(block, family, needs, statistics, states[0].device):
                for index, before in enumerate(states):
                    after = block(before, **given[index])
                    if needs.distance:
                        statistics.compare(before, after)
                    states[index] = after
            advance(1)
            yield number, statistics
            for index, before in enumerate(entered):
                states[index] = block(before, **given[index])


def enter(model: nn.Module, family: Family, batches: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[list[Arguments]]]:
    """Hidden states that enter block 0, per batch, and the arguments that each block gets, per batch and block.

    The blocks only note their arguments and hand their input on, so nothing is computed twice. Batches of one shape
    share one copy of the arguments: masks and rotary tables depend on nothing else.
    """
    blocks = blocks_of(model, family)
    states: list[torch.Tensor] = []
    arguments: list[list[Arguments]] = []
    by_shape: dict[torch.Size, list[Arguments]] = {}
    body = model.get_submodule(family.blocks.split(".")[0])
    device = next(model.parameters()).device
    for batch in batches:
        noted: list[tuple[torch.Tensor, Arguments]] = []
        with _noting(blocks, noted):
            body(input_ids=batch.to(device), use_cache=False)
        states.append(noted[0][0])
        arguments.append(by_shape.setdefault(batch.shape, [kept for _, kept in noted]))
    return states, arguments


def brought(block: nn.Module, states: Sequence[torch.Tensor], arguments: Sequence[Arguments]) -> tuple[list[torch.Tensor], list[Arguments]]:
    """Hidden states and arguments of all batches on the device of a block, where the model is spread over several."""
    device = next((parameter.device for parameter in block.parameters()), states[0].device)
    if device.type == "meta":  # it is paged, to where the states are
        return list(states), list(arguments)
    there: dict[int, Arguments] = {}  # batches of one shape share theirs
    for shared in arguments:
        if id(shared) not in there:
            there[id(shared)] = shared if find_device(shared) in (None, device) else send_to_device(shared, device)
    return [state.to(device) for state in states], [there[id(shared)] for shared in arguments]


@contextmanager
def _noting(blocks: nn.ModuleList, noted: list[tuple[torch.Tensor, Arguments]]) -> Iterator[None]:
    def note(hidden: torch.Tensor, **kept: Any) -> torch.Tensor:
        noted.append((hidden, kept))
        return hidden

    with standing_in(blocks, note):
        yield


@contextmanager
def standing_in(blocks: nn.ModuleList, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """``forward`` in place of every block."""
    originals = [block.forward for block in blocks]
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.forward = original


@contextmanager
def _collecting(block: nn.Module, family: Family, needs: Needs, statistics: BlockStatistics, device: torch.device) -> Iterator[None]:
    """Hooks on one projection per point, for as long as a block is measured."""
    with ExitStack() as hooks:
        for point in needs.points:
            linear = block.get_submodule(family.reading(point)[0].name)
            assert isinstance(linear, nn.Linear)
            zeros = InputStatistics.zeros(linear.in_features, point in needs.gram, device)
            if point in needs.fluctuation:
                zeros.fluctuation = Fluctuation.zeros(linear.in_features, device)
            statistics.inputs[point] = zeros
            handle = linear.register_forward_pre_hook(_adder(zeros, statistics.tokens // statistics.sequences))
            hooks.callback(handle.remove)
        yield


def _adder(target: InputStatistics, length: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        target.add(inputs[0])
        if target.fluctuation is not None:  # some blocks flatten sequences before their FFN
            target.fluctuation.add(inputs[0].reshape(-1, length, inputs[0].shape[-1]))

    return add
