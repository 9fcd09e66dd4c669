"""What a number format does to a product, by the numbers that go in: variances of errors, never read from the graph that is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from onnx import TensorProto

MANTISSA: dict[int, int] = {TensorProto.FLOAT16: 10, TensorProto.BFLOAT16: 7}
LEAST: dict[int, float] = {TensorProto.FLOAT16: 2.0**-24, TensorProto.BFLOAT16: 0.0}  # the step between numbers that are nearly zero


@dataclass(frozen=True)
class FormatRounding:
    """One format.

    Attributes:
        floats: the onnx type of weights that are floats; None where they are integers with scales.
        bits, block: of integers, and how many inputs share a scale (0: all).
        offset: whether they have zero points.
        inputs: inputs that share a scale while they are rounded to 8 bits; 0: all of the call; None: they stay as they are.
    """

    floats: int | None = None
    bits: int = 0
    block: int = 0
    offset: bool = True
    inputs: int | None = None

    def weight_variance(self, weight: torch.Tensor) -> torch.Tensor:
        """Of the error of each weight, for weights (outputs, inputs)."""
        if self.floats is None:
            return _in_blocks(weight, self.block, lambda part: self._step(part).square() / 12)
        if self.floats not in MANTISSA:
            return torch.zeros_like(weight)
        step = torch.exp2(weight.abs().clamp_min(2.0**-60).log2().floor() - MANTISSA[self.floats])
        return step.clamp_min(LEAST[self.floats]).square() / 12

    def input_variance(self, given: torch.Tensor) -> torch.Tensor:
        """Of the error of each input, for inputs (tokens, inputs)."""
        if self.inputs is None:
            return torch.zeros_like(given)
        if self.inputs == 0:
            span = given.max().clamp_min(0) - given.min().clamp_max(0)
            return torch.full_like(given, (span.item() / 255) ** 2 / 12)
        return _in_blocks(given, self.inputs, lambda part: (part.abs().amax(-1, keepdim=True) / 127).square() / 12)

    def _step(self, part: torch.Tensor) -> torch.Tensor:
        if not self.offset:
            return part.abs().amax(-1, keepdim=True) / 2 ** (self.bits - 1)
        span = part.amax(-1, keepdim=True).clamp_min(0) - part.amin(-1, keepdim=True).clamp_max(0)
        return span / (2**self.bits - 1)


def _in_blocks(numbers: torch.Tensor, block: int, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What ``of`` gives for every block of a row, (rows, blocks, width) to (rows, blocks, 1), as often as the block has numbers."""
    width = numbers.shape[1]
    block = block or width
    padded = torch.nn.functional.pad(numbers, (0, -width % block)).view(len(numbers), -1, block)
    return of(padded).expand_as(padded).reshape(len(numbers), -1)[:, :width]
