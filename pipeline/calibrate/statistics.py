"""What a sweep accumulates for one block, in fp32 whatever the model's dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipeline.architecture.families import Point, Sublayer
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.routed import RoutedStatistics

STRIP = 256  # rows of a strip; from 192 to 384 the cost is the same


@dataclass
class InputStatistics:
    """Sums over tokens of the inputs x of projections, C channels wide.

    Attributes:
        squares: Σ x², shape (C,), fp32.
        total: Σ x, shape (C,), fp32.
        upper: upper triangle of Σ x xᵀ (below it: partly filled), shape (C, C), fp32, or None.
        fluctuation: the same inputs sequence by sequence, or None.
    """

    squares: torch.Tensor
    total: torch.Tensor
    upper: torch.Tensor | None
    fluctuation: Fluctuation | None = None

    @classmethod
    def zeros(cls, channels: int, with_gram: bool, device: torch.device) -> InputStatistics:
        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(empty(channels), empty(channels), empty(channels, channels) if with_gram else None)

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds a batch of inputs, shape (..., C); with weights, of shape (...,), each token counts so many times."""
        rows = inputs.flatten(0, -2)
        if weights is None:
            self.total += rows.sum(0, dtype=torch.float32)
        else:
            root = weights.flatten()[:, None].sqrt()
            scaled = rows.float() * root
            self.total += (scaled * root).sum(0)
            rows = scaled.to(rows.dtype)  # rounded inputs have a positive semidefinite moment as well
        self.squares += column_squares(rows)
        if self.upper is not None:
            add_upper_gram(self.upper, rows)

    def gram(self) -> torch.Tensor:
        """Σ x xᵀ, shape (C, C), fp32; only where it was collected."""
        assert self.upper is not None
        return self.upper.triu().add_(self.upper.triu(1).T)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them."""
        yield from (self.squares, self.total)
        if self.upper is not None:
            yield self.upper
        if self.fluctuation is not None:
            yield from (self.fluctuation.mean, self.fluctuation.between, self.fluctuation.centred)

    def restricted(self, channels: torch.Tensor) -> InputStatistics:
        """The same of some of the channels, given by ascending numbers."""
        upper = None if self.upper is None else self.upper[channels][:, channels]
        fluctuation = self.fluctuation and self.fluctuation.restricted(channels)
        return InputStatistics(self.squares[channels], self.total[channels], upper, fluctuation)


@dataclass
class BlockStatistics:
    """What a sweep knows about one block.

    Attributes:
        tokens, sequences: how many were seen.
        distance: Σ over tokens of arccos(cos(block input, block output)) / π.
        influence: Σ over tokens of 1 − cos(block input, block output); measured with the distance.
        inputs: per point that was asked for.
        gradients: what the sweep backwards collected, where it was asked for.
        routed: what its experts gave, where it was asked for and there are any.
        chosen: how many tokens chose each expert, shape (E,), where gradients of experts were asked for: it outlives these.
    """

    tokens: int = 0
    sequences: int = 0
    distance: float = 0.0
    influence: float = 0.0
    inputs: dict[Point, InputStatistics] = field(default_factory=dict)
    gradients: BlockGradients | None = None
    routed: RoutedStatistics | None = None
    chosen: torch.Tensor | None = None

    @property
    def usage(self) -> torch.Tensor | None:
        """How many tokens chose each expert, shape (E,); None where nobody counted, or there are none."""
        return self.chosen if self.routed is None else self.routed.tokens

    @property
    def mean_distance(self) -> float:
        """Mean angular distance per token, in [0, 1] (CFSP's coarse importance, free of the token count)."""
        return self.distance / self.tokens

    @property
    def mean_influence(self) -> float:
        """Mean of 1 − cosine per token, in [0, 2] (ShortGPT's block influence, arXiv 2403.03853, eq. 1)."""
        return self.influence / self.tokens

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that a forward sweep collects."""
        yield torch.tensor([self.distance, self.influence])
        for inputs in self.inputs.values():
            yield from inputs.tensors()
        if self.routed is not None:
            yield from self.routed.tensors()

    def compare(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Adds how far a batch of hidden states turned, shape (..., H)."""
        cosine = cosines(before, after)
        self.distance += angles(cosine).sum(dtype=torch.float64).item()
        self.influence += (1 - cosine).sum(dtype=torch.float64).item()


def activation_norm(squares: torch.Tensor, sequences: int) -> torch.Tensor:
    """√(Σ x² / sequences) per channel: the mean over sequences of the squared norm over tokens, rooted; shape (C,)."""
    return (squares / sequences).sqrt()


def token_weights(residual: torch.Tensor) -> torch.Tensor:
    """1 / mean square of the residual stream per token, shape (T,); ``residual`` is (T, H).

    The norm before the next projection divides by that, so an error counts relative to it. Without the weight a few
    tokens with massive activations decide a fit.
    """
    return 1 / residual.float().square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)


def angles(cosine: torch.Tensor) -> torch.Tensor:
    """arccos(cosine) / π, in [0, 1]: 1/2 is a right angle."""
    return cosine.arccos() / math.pi


def cosines(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """cos(before, after) per token, in fp32; inputs (..., H), result (...).

    Clamped: rounding lifts it above 1 where a token's norm dwarfs what a block adds, and the arccos of that is NaN
    (the released CFSP code fails on SmolLM2 for that reason).
    """
    return torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1.0, 1.0)


def column_squares(rows: torch.Tensor) -> torch.Tensor:
    """Σ over rows of x², shape (C,), accumulated in fp32; ``rows`` is (N, C)."""
    return rows.float().square().sum(0)


def add_upper_gram(upper: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds rowsᵀ rows to the upper triangle of ``upper`` (C, C) fp32, in place; ``rows`` (N, C) in any float dtype.

    By strips of rows from the diagonal rightwards: five eighths of the work of the whole product.

    A product of bf16 matrices comes back rounded to bf16 on a CPU. With a massive activation in it that rounding is
    larger than the ridge of a least-squares solve, and the Gram matrix is no longer positive definite (seen on
    SmolLM2). So the rows go in as fp32, of which the processor multiplies the (exact) bf16 part and adds up in fp32.
    """
    exact = rows.float()
    with products_of(rows.dtype):
        for start in range(0, len(upper), STRIP):
            upper[start : start + STRIP, start:].addmm_(exact[:, start : start + STRIP].T, exact[:, start:])


def products_of(dtype: torch.dtype) -> AbstractContextManager[None]:
    """For exact fp32 products of values that come from ``dtype``, as fast as that allows."""
    return _bf16_products() if dtype == torch.bfloat16 else nullcontext()


@contextmanager
def _bf16_products() -> Iterator[None]:
    """fp32 products on the CPU may round their *inputs* to bf16: no loss for inputs that come from bf16."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined] # typed as absent, documented
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@dataclass
class BlockGradients:
    """Sums over the N sequences of one block, fp32. x_t is what a projection reads at token t, g_t = ∂loss/∂(what it writes).

    Attributes:
        tokens, sequences: how many were seen.
        absolute: per projection Σ over sequences of |Σ_t g_t x_tᵀ|, shape (R, C).
        squares: per projection Σ over sequences of (Σ_t g_t x_tᵀ)², shape (R, C).
        outputs: per projection Σ over tokens of g_t g_tᵀ, shape (R, R).
        inputs: per point Σ over tokens of x_t x_tᵀ, shape (C, C).
        totals: per point Σ over tokens of x_t, shape (C,): with ``inputs`` and ``tokens``, the second moment of inputs
            that a constant 1 was appended to.
        masks: per sublayer ∂loss/∂m of each sequence at m = 1, where the reader reads m ∘ x, shape (N, C).
        experts: of each sequence, shape (N, E): Σ over its tokens, and Σ of squares, of how the loss moves where a token's expert e could
            not be chosen; how many of its tokens chose e. Under ``moves``, ``squares`` and ``tokens``.
    """

    tokens: int
    sequences: int
    absolute: dict[str, torch.Tensor] = field(default_factory=dict)
    squares: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[Point, torch.Tensor] = field(default_factory=dict)
    totals: dict[Point, torch.Tensor] = field(default_factory=dict)
    masks: dict[Sublayer, torch.Tensor] = field(default_factory=dict)
    experts: dict[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them."""
        for kind in (self.absolute, self.squares, self.outputs, self.inputs, self.totals, self.masks, self.experts):
            yield from kind.values()


class GivenStatistics(Protocol):
    """What the sweeps would yield, in their order."""

    def forward(self) -> Iterator[tuple[int, BlockStatistics]]:
        """As ``sweep``."""

    def backward(self) -> Iterator[tuple[int, BlockGradients]]:
        """As ``gradient_sweep``."""
