"""What the backward sweep collects of one block: gradients of weights, their Kronecker factors, gradients of masks.

No parameter ever requires a gradient: those of weights are products of what a projection read and the gradient at
what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.architecture.families import Family, Point, Sublayer
from pipeline.calibrate.needs import GradientNeeds
from pipeline.calibrate.routed_gradients import RoutedCall, per_sequence, routed_calls
from pipeline.calibrate.statistics import BlockGradients, InputStatistics, products_of, token_weights
from pipeline.live.blocks import Arguments, linear_in
from pipeline.live.once import unread
from pipeline.live.routing import experts_in

Key = TypeVar("Key", Point, str)
# The backward pass carries this multiple of the loss, so that fp16 gradients of a mean over thousands of tokens do not
# vanish. A power of two: bf16 and fp32 round the same with and without it.
SCALE = 1024.0
GBLM_SCALE = 100.0  # of gradients before the published GBLM-Pruner rounds them to fp16


class Tally:
    """Runs one block with gradients, batch after batch, and adds up what was asked for."""

    def __init__(self, family: Family, needs: GradientNeeds, block: nn.Module) -> None:
        self.needs, self.block = needs, block
        there = [linear for linear in family.linears if linear_in(block, linear) is not None]
        readers = {sublayer: family.reader(sublayer) for sublayer in family.cuttable if sublayer in needs.masks}
        self.readers = {sublayer: reader.name for sublayer, reader in readers.items() if reader in there}
        self.written = [linear for linear in there if linear.name in needs.weights | needs.kronecker]
        self.absolute: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, InputStatistics] = {}
        self.inputs: dict[Point, InputStatistics] = {}
        self.masks: dict[Sublayer, list[torch.Tensor]] = {sublayer: [] for sublayer in self.readers}
        self.experts = experts_in(block, family) if needs.experts else 0
        self.routed: dict[str, list[torch.Tensor]] = {"moves": [], "squares": [], "tokens": []}
        self.family = family
        self._weights: dict[Sublayer, torch.Tensor | None] = dict.fromkeys(Sublayer)
        self._weighed: dict[Sublayer, float] = {}
        idle = family.reader(Sublayer.FFN) if Sublayer.FFN in family.cuttable and family.adds(Sublayer.FFN) else None
        self._unread = idle.name if idle and linear_in(block, idle) is not None else None

    def through(
        self, hidden: torch.Tensor, arguments: Arguments, upstream: torch.Tensor, leaving: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Gradient at the block's input, given that at its output; both as ``hidden``, shape (B, S, H).

        ``leaving`` are the token weights of what leaves the block, (B · S,), where moments are relative: those of the FFN's projections. The
        attention's go by what enters.
        """
        entering = None if leaving is None else token_weights(hidden.detach().flatten(0, -2))
        self._weights = {Sublayer.ATTENTION: entering, Sublayer.FFN: leaving}
        for sublayer, weights in self._weights.items():
            if weights is not None:
                self._weighed[sublayer] = self._weighed.get(sublayer, 0.0) + weights.sum(dtype=torch.float64).item()
        hidden = hidden.detach().requires_grad_()
        names = {linear.name for linear in self.written} | set(self.readers.values())
        with torch.enable_grad(), _tapped(self.block, names) as taps, self._calls() as calls, _unread(self.block, self._unread):
            after = arguments.through(self.block, hidden)
        writes = [taps[linear.name][1] for linear in self.written]
        reads = [taps[reader][0] for reader in self.readers.values()]
        sums = [call.total for call in calls]
        result, *gradients = torch.autograd.grad(after, [hidden, *writes, *reads, *sums], upstream)
        self._add_written(taps, gradients[: len(writes)], len(hidden))
        for call, slope in zip(calls, gradients[len(writes) + len(reads) :], strict=True):
            moves = call.moves(slope)
            self.routed["moves"].append(per_sequence(moves, len(hidden)))
            self.routed["squares"].append(per_sequence(moves.square(), len(hidden)))
            self.routed["tokens"].append(per_sequence(torch.zeros_like(moves).scatter_(1, call.index, 1.0), len(hidden)))
        for sublayer, read, gradient in zip(self.readers, reads, gradients[len(writes) : len(writes) + len(reads)], strict=True):
            self.masks[sublayer].append(mask_gradients(_by_sequence(read, len(hidden)), _by_sequence(gradient, len(hidden))))
        return result

    def _calls(self) -> AbstractContextManager[list[RoutedCall]]:
        return routed_calls(self.block, self.family) if self.experts else nullcontext([])

    def _add_written(self, taps: dict[str, tuple[torch.Tensor, torch.Tensor]], gradients: list[torch.Tensor], sequences: int) -> None:
        measured: set[Point] = set()
        for linear, gradient in zip(self.written, gradients, strict=True):
            read, written = _by_sequence(taps[linear.name][0], sequences), _by_sequence(gradient, sequences)
            if linear.name in self.needs.weights:
                self._add_weights(linear.name, read, written)
            if linear.name in self.needs.kronecker:
                weights = self._weights[linear.sublayer]
                _moment(self.outputs, linear.name, written, None if weights is None else 1 / weights)
                if linear.point not in measured:
                    _moment(self.inputs, linear.point, read, weights)
                measured.add(linear.point)

    def _level(self, found: BlockGradients) -> None:
        """Weights whose mean is 1, which changes no product of two moments."""
        means = {sublayer: total / found.tokens for sublayer, total in self._weighed.items()}
        sublayers = {linear.point: linear.sublayer for linear in self.written}
        for linear in self.written:
            if linear.sublayer in means and linear.name in found.outputs:
                found.outputs[linear.name] *= means[linear.sublayer]
        for point in found.inputs:
            if sublayers[point] in means:
                found.inputs[point] /= means[sublayers[point]]
                found.totals[point] /= means[sublayers[point]]

    def _add_weights(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        shape = outputs.shape[-1], inputs.shape[-1]
        if name not in self.squares:
            self.squares[name] = torch.zeros(shape, device=inputs.device)
            self.absolute[name] = torch.zeros(shape, device=inputs.device, dtype=torch.float16 if self.needs.half else None)
        add_weight_gradients(self.absolute[name], self.squares[name], inputs, outputs)

    def gradients(self, windows: torch.Tensor) -> BlockGradients:
        """What was added up, without SCALE; the tally is empty afterwards, since both would be as large as the block or larger."""
        back = GBLM_SCALE if self.needs.half else SCALE
        found = BlockGradients(windows.numel(), len(windows))
        for name in list(self.squares):
            found.absolute[name] = self.absolute.pop(name).float().div_(back)
            found.squares[name] = self.squares.pop(name).div_(SCALE**2)
        for name in list(self.outputs):
            found.outputs[name] = self.outputs.pop(name).gram().div_(SCALE**2)
        for point in list(self.inputs):
            moment = self.inputs.pop(point)
            found.inputs[point], found.totals[point] = moment.gram(), moment.total
        if self.experts:
            scales = {"moves": SCALE, "squares": SCALE**2, "tokens": 1.0}
            found.experts = {name: torch.cat(self.routed[name]) / scale for name, scale in scales.items()}
        self._level(found)
        found.masks = {sublayer: torch.cat(parts) / SCALE for sublayer, parts in self.masks.items()}
        return found


def add_weight_gradients(absolute: torch.Tensor, squares: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Adds |g| and g² of each sequence's weight gradient g = Σ_t outputs_t inputs_tᵀ to (R, C), in place.

    Args:
        absolute: Σ|g| in fp32, SCALE times too large; or in fp16, as the published GBLM-Pruner has it.
        squares: Σg², fp32.
        inputs: what the projection read, shape (B, S, C).
        outputs: the gradients at what it wrote, shape (B, S, R).
    """
    half = absolute.dtype == torch.float16
    with products_of(torch.promote_types(inputs.dtype, outputs.dtype)):
        for read, written in zip(inputs, outputs, strict=True):  # one at a time: each is as large as the weight
            gradient = written.float().T @ read.float()
            if half:  # SCALE would have kept what fp16 loses
                gradient = gradient.div_(SCALE).half().float().mul_(SCALE)
            squares.addcmul_(gradient, gradient)
            absolute.add_((gradient.abs_() * (GBLM_SCALE / SCALE)).half() if half else gradient.abs_())


def mask_gradients(inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Σ over tokens of input × gradient at it, shape (B, C), fp32; both (B, S, C)."""
    return (inputs.float() * gradients.float()).sum(1)


def _moment(moments: dict[Key, InputStatistics], key: Key, rows: torch.Tensor, weights: torch.Tensor | None) -> None:
    """Adds Σ over tokens of w row rowᵀ to the moment of that name; ``rows`` is (B, S, C), w (B · S,) or one."""
    if key not in moments:
        moments[key] = InputStatistics.zeros(rows.shape[-1], True, rows.device)
    moments[key].add(rows, weights)


def _by_sequence(values: torch.Tensor, sequences: int) -> torch.Tensor:
    """(B, S, C) without a graph; some architectures hand all tokens of a batch to their FFN as rows."""
    return values.detach().reshape(sequences, -1, values.shape[-1])


class _Unread(torch.autograd.Function):
    """A projection whose values nothing reads, so that zeros stand for them; its gradients are its own."""

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        context.save_for_backward(weight)
        return inputs.new_zeros(*inputs.shape[:-1], len(weight))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (weight,) = context.saved_tensors
        return gradient @ weight, None


@contextmanager
def _unread(block: nn.Module, name: str | None) -> Iterator[None]:
    """The FFN's reader does not multiply: where the stream takes what it writes, a block's gradients do not depend on that."""
    if name is None:
        yield
        return
    with unread(block, name, lambda reader, inputs: _Unread.apply(inputs, reader.weight)):  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _tapped(block: nn.Module, names: set[str]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What the named projections read and write while the block runs, by name."""
    taps: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def tap(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda _, inputs, output: taps.__setitem__(name, (inputs[0], output))

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(block.get_submodule(name).register_forward_hook(tap(name)).remove)
        yield taps
