"""What of a block need not be computed: its attention, where that has run before, and products that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.live.blocks import Arguments


@dataclass(frozen=True)
class AttentionRun:
    """What a block's attention did on one batch.

    Attributes:
        inputs: what its reader read.
        wrote: what the reader wrote.
        gave: what the module gave, whose first or only tensor is ``wrote``; None where the reader's output is not what it gives,
            or where no module holds the reader alone.
    """

    inputs: torch.Tensor
    wrote: torch.Tensor
    gave: Any

    @contextmanager
    def standing_in(self, block: nn.Module, reader: str, wrote: torch.Tensor) -> Iterator[None]:
        """The attention gives ``wrote`` without being run; it runs as ever where ``gave`` is None."""
        if self.gave is None:
            yield
            return
        module, wrote = block.get_submodule(_holder(reader)), wrote.view_as(_first(self.gave))
        gives = (wrote, *self.gave[1:]) if isinstance(self.gave, tuple) else wrote
        original = module.forward
        module.forward = lambda *_, **__: gives
        try:
            yield
        finally:
            module.forward = original


class _Enough(Exception):
    """Ends a block's forward pass where nothing behind is needed."""


def run_attention(block: nn.Module, reader: str, hidden: torch.Tensor, arguments: Arguments) -> AttentionRun:
    """The block as far as its attention.

    Args:
        block: a decoder block.
        reader: name inside the block of the projection that reads what the heads give.
        hidden: what enters the block, shape (B, S, H).
        arguments: of the block.
    """
    read: list[torch.Tensor] = []
    wrote: list[torch.Tensor] = []
    gave: list[Any] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        read.append(inputs[0])
        wrote.append(output)
        if not _holder(reader):
            raise _Enough

    def stop(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        gave.append(output)
        raise _Enough

    with ExitStack() as hooks, suppress(_Enough):
        hooks.callback(block.get_submodule(reader).register_forward_hook(note).remove)
        if _holder(reader):
            hooks.callback(block.get_submodule(_holder(reader)).register_forward_hook(stop).remove)
        arguments.through(block, hidden)
    known = bool(gave) and _is_same(_first(gave[0]), wrote[0])
    return AttentionRun(read[0], wrote[0], gave[0] if known else None)


def zeros_of(reader: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """In place of what a projection would write."""
    return inputs.new_zeros(*inputs.shape[:-1], reader.out_features)


@contextmanager
def unread(block: nn.Module, name: str, instead: Callable[[nn.Linear, torch.Tensor], torch.Tensor] = zeros_of) -> Iterator[None]:
    """A projection of a block whose values nobody reads does not multiply; hooks see what it reads as ever.

    One that accelerate moves from device to device multiplies all the same.
    """
    reader = block.get_submodule(name)
    if not isinstance(reader, nn.Linear) or hasattr(reader, "_hf_hook"):
        yield
        return
    original = reader.forward
    reader.forward = lambda inputs: instead(reader, inputs)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        reader.forward = original  # type: ignore[method-assign]


@contextmanager
def noted(module: nn.Module | None) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What a module reads first and what it gives, call by call; nothing of None."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


def _holder(reader: str) -> str:
    """The module inside a block that holds its attention's reader; empty where that is the block itself."""
    return reader.rpartition(".")[0]


def _first(gave: Any) -> Any:
    return gave[0] if isinstance(gave, tuple) and gave else gave


def _is_same(gave: Any, wrote: torch.Tensor) -> bool:
    """Whether a module gives exactly what its reader wrote, maybe in another shape."""
    return isinstance(gave, torch.Tensor) and gave.data_ptr() == wrote.data_ptr() and gave.numel() == wrote.numel() and gave.is_contiguous()
