"""The two factors of a projection's curvature, and the inverses that costs and updates need.

For y = W x + b the loss rises by ½ tr(G D A Dᵀ) when W changes by D (LLM Surgeon, arXiv 2312.17244, section 3.1): A is
the mean over tokens of x xᵀ, G that of g gᵀ with g the gradient of the loss at y. Shapes: W (R, C), A (C, C), G (R, R).
A bias is one more column of W, whose input is always 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.common.errors import TrimlineError

STRIP = 512  # columns of an inverse that are solved for at a time
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Damped:
    """A factor M with what is added to its diagonal before anything is solved with it.

    Attributes:
        matrix: M, undamped, shape (n, n).
        added: to every entry of the diagonal.
    """

    matrix: torch.Tensor
    added: float

    @classmethod
    def by(cls, matrix: torch.Tensor, damping: float) -> Damped:
        """Damped by ``damping`` × the mean of the diagonal."""
        mean = matrix.diagonal().double().mean().item() if len(matrix) else 0.0
        return cls(matrix, damping * max(mean, TINY))

    def root(self, among: torch.Tensor | None = None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Lower Cholesky factor of the whole or of the rows and columns that a mask or indices name; fp64 unless told.

        Raises:
            TrimlineError: the damping is not enough.
        """
        matrix = self.matrix if among is None else principal(self.matrix, among)
        exact = matrix.to(dtype, copy=True)
        exact.diagonal().add_(self.added)
        return lower_root(exact)

    def inverse(self) -> torch.Tensor:
        """(M + added)⁻¹, shape (n, n), fp64."""
        return torch.cholesky_inverse(self.root())


def lower_root(matrix: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor of a symmetric matrix, or of each of several, in its place.

    Raises:
        TrimlineError: one is not positive definite, or not finite.
    """
    info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, info))
    if info.any():
        raise TrimlineError(
            f"The second moments of {matrix.shape[-1]} inputs or gradients are not positive definite with this damping.",
            "Give a larger damping, more calibration tokens, or measure in float32: --dtype float32.",
        )
    return matrix


def with_bias(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[W | b], shape (R, C + 1); W itself without a bias."""
    return weight if bias is None else torch.cat((weight, bias[:, None]), dim=1)


def with_constant(inputs: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Second moment of (x, 1), shape (C + 1, C + 1), from that of x, (C, C), and its mean, (C,)."""
    top = torch.cat((inputs, mean[:, None]), dim=1)
    return torch.cat((top, torch.cat((mean, mean.new_ones(1)))[None]))


def constant_eliminated(inputs: torch.Tensor, mean: torch.Tensor, damping: float) -> Damped:
    """The factor of inputs x whose projection has a bias that adapts to whatever happens to them, shape (C, C).

    Its inverse is the block of x in the damped inverse for (x, 1).
    """
    added = Damped.by(with_constant(inputs, mean), damping).added
    return Damped(inputs - torch.outer(mean, mean) / (1 + added), added)


def balanced(inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and G scaled to equal Frobenius norms, their Kronecker product unchanged.

    No cost and no update depends on it. It keeps G, which holds squares of gradients of a mean, out of the range where
    fp32 loses digits. All-zero factors are returned as they are.
    """
    ours, theirs = inputs.norm().item(), outputs.norm().item()
    if ours == 0 or theirs == 0:
        return inputs, outputs
    scale = (theirs / ours) ** 0.5
    return inputs * scale, outputs / scale


def live_columns(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Where a column has both a weight and an input that are not exactly zero, shape (C,), bool."""
    return (weight != 0).any(0) & (inputs.diagonal() != 0)


def live_rows(weight: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Where a row has both a weight and a gradient that are not exactly zero, shape (R,), bool."""
    return (weight != 0).any(1) & (outputs.diagonal() != 0)


def principal(matrix: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The rows and columns of a square matrix that a mask or indices name; no copy where a mask names all."""
    if where.dtype == torch.bool and bool(where.all()):
        return matrix
    return matrix[where][:, where]


def inverse_blocks(root: torch.Tensor, width: int = 1) -> torch.Tensor:
    """Diagonal blocks of (L Lᵀ)⁻¹, shape (C / width, width, width), fp64, without the inverse itself.

    The columns j … of L⁻¹ are zero above row j, so that each strip of them solves a smaller system than the one before:
    C³/3 multiplications, and memory for one strip.

    Args:
        root: lower Cholesky factor L, shape (C, C).
        width: size of a block; divides C.
    """
    return torch.cat(list(_blocks(root, width)))


def _blocks(root: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    size = len(root)
    strip = max(1, STRIP // width) * width
    if not size:
        yield root.new_zeros(0, width, width)
    for start in range(0, size, strip):
        right = torch.zeros(size - start, min(strip, size - start), dtype=root.dtype, device=root.device)
        right.diagonal().fill_(1)
        solved = torch.linalg.solve_triangular(root[start:, start:], right, upper=False)
        units = solved.unflatten(1, (-1, width)).movedim(1, 0)  # (units, rows, width)
        yield units.mT @ units
