"""Walking a model block by block: what enters the first, what each hands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import find_device, send_to_device
from torch import nn

from pipeline.architecture.families import Family, Linear
from pipeline.architecture.wrappers import name_in_whole
from pipeline.live.finite import demand_finite

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Arguments:
    """What a model gives a block beside the hidden states: masks, rotary tables, whatever its class takes.

    Attributes:
        further: by position, such as what Gemma 4 gives each block of the tokens.
        named: by name.
    """

    further: tuple[Any, ...]
    named: Mapping[str, Any]

    def through(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What leaves a block."""
        return states_of(block(hidden, *self.further, **self.named))

    def on(self, device: torch.device) -> Arguments:
        """The same there."""
        held = (self.further, dict(self.named))
        if find_device(held) in (None, device):
            return self
        return Arguments(*send_to_device(held, device))


def through_all(block: nn.Module, states: Sequence[torch.Tensor], arguments: Sequence[Arguments]) -> list[torch.Tensor]:
    """What leaves a block, batch by batch."""
    return [given.through(block, hidden) for hidden, given in zip(states, arguments, strict=True)]


def blocks_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The list of decoder blocks of a causal language model, or of the one in a larger model."""
    found = model.get_submodule(blocks_path(model, family))
    assert isinstance(found, nn.ModuleList)
    return found


def states_of(output: Any) -> torch.Tensor:
    """The hidden states in what a block gives, which some classes put first in a tuple."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def linear_in(block: nn.Module, linear: Linear) -> nn.Linear | None:
    """A projection of a block; None in a block of a kind that has it not."""
    path, _, own = linear.name.rpartition(".")
    try:
        found = getattr(block.get_submodule(path), own, None)
    except AttributeError:
        return None
    assert found is None or isinstance(found, nn.Linear)
    return found


def blocks_path(model: nn.Module, family: Family) -> str:
    """Module path of the decoder blocks of a causal language model, or of the one in a larger model."""
    inside = name_in_whole(f"{family.blocks}.").removesuffix(".")
    return inside if hasattr(model.get_submodule(inside.partition(".")[0]), inside.split(".")[1]) else family.blocks


def batches_of(windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Windows (N, S) in batches of about ``BATCH_TOKENS`` tokens."""
    return windows.split(max(1, BATCH_TOKENS // windows.shape[1]))


def enter(model: nn.Module, family: Family, batches: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[list[Arguments]]]:
    """Hidden states that enter block 0, per batch, and the arguments that each block gets, per batch and block.

    The blocks only note their arguments and hand their input on, so nothing is computed twice. Batches of one shape
    share one copy of the arguments: masks and rotary tables depend on nothing else. What blocks are given by position may be of the tokens.

    Raises:
        TrimlineError: the states are not finite.
    """
    blocks = blocks_of(model, family)
    states: list[torch.Tensor] = []
    arguments: list[list[Arguments]] = []
    by_shape: dict[torch.Size, list[Arguments]] = {}
    body = model.get_submodule(family.blocks.split(".")[0])
    device = next(model.parameters()).device
    for batch in batches:
        noted: list[tuple[torch.Tensor, Arguments]] = []
        with _noting(blocks, family, noted):
            body(input_ids=batch.to(device), use_cache=False)
        states.append(noted[0][0])
        own = [kept for _, kept in noted]
        arguments.append(own if any(kept.further for kept in own) else by_shape.setdefault(batch.shape, own))
    demand_finite(states, "The hidden states that enter the first block", model)
    return states, arguments


def brought(block: nn.Module, states: Sequence[torch.Tensor], arguments: Sequence[Arguments]) -> tuple[list[torch.Tensor], list[Arguments]]:
    """Hidden states and arguments of all batches on the device of a block, where the model is spread over several."""
    device = next((parameter.device for parameter in block.parameters()), states[0].device)
    if device.type == "meta":  # it is paged, to where the states are
        return list(states), list(arguments)
    there: dict[int, Arguments] = {}  # batches of one shape share theirs
    for shared in arguments:
        if id(shared) not in there:
            there[id(shared)] = shared.on(device)
    return [state.to(device) for state in states], [there[id(shared)] for shared in arguments]


@contextmanager
def _noting(blocks: nn.ModuleList, family: Family, noted: list[tuple[torch.Tensor, Arguments]]) -> Iterator[None]:
    def note(hidden: torch.Tensor, *further: Any, **named: Any) -> torch.Tensor:
        noted.append((hidden, Arguments(further, named)))
        return hidden

    with standing_in(blocks, note, family):
        yield


@contextmanager
def standing_in(blocks: Iterable[nn.Module], forward: Callable[..., torch.Tensor], family: Family) -> Iterator[None]:
    """``forward`` in place of every block: hidden states and a block's other arguments to hidden states."""

    def wrapped(*given: Any, **named: Any) -> tuple[torch.Tensor]:
        return (forward(*given, **named),)

    originals = [block.forward for block in blocks]
    try:
        for block in blocks:
            block.forward = wrapped if family.gives_tuple else forward
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.forward = original


def logits_from(model: nn.Module, family: Family, tokens: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Logits (B, S, V) of tokens (B, S) whose hidden states (B, S, H) have left the last block: what stands behind the blocks alone computes."""
    with standing_in(blocks_of(model, family), lambda *_, **__: states, family):
        found: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return found
