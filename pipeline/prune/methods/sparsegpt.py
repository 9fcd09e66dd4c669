"""SparseGPT (arXiv 2301.00774, algorithm 1): single weights go, and those to the right of each make up for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from pipeline.architecture.families import Point
from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.common.errors import TrimlineError
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import LayerView, options_of
from pipeline.prune.model.masks import Pattern, n_m
from pipeline.prune.step import ResolvedStep

PUBLISHED_SCALE = 2.0  # of the second moment; it changes the stated error, and neither mask nor weights


@dataclass(frozen=True)
class Solved:
    """What is left of a layer.

    Attributes:
        weight: updated weights, exact zeros where one was removed, shape (R, C), fp32.
        error: ½ tr(ΔW H ΔWᵀ) with the damped H and ΔW counted from where dead inputs are zero already.
    """

    weight: torch.Tensor
    error: float


def hessian(gram: torch.Tensor, sequences: int) -> torch.Tensor:
    """2 / sequences · Σ x xᵀ over tokens, shape (C, C), fp64: half of it is the mean squared error's curvature."""
    return gram.double() * (PUBLISHED_SCALE / sequences)


def inverse_factor(second_moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with H⁻¹ = UᵀU for the damped H, shape (C, C), fp64.

    A dead input has a diagonal of 0, which becomes 1. With V upper triangular and H = V Vᵀ, U is V⁻¹: so one Cholesky
    factorisation of H with its axes reversed is enough, and H⁻¹ is never formed.

    Args:
        second_moment: symmetric, shape (C, C).
        damping: what is added to the diagonal, in units of its mean.

    Raises:
        TrimlineError: H is not positive definite with this damping.
    """
    damped = second_moment.double().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise TrimlineError(
            f"SparseGPT cannot factorise a second moment of {len(damped)} inputs with damping {damping:g}.",
            "Give a larger options.damping, or measure in float32: --dtype float32.",
        )
    factor = lower.flip(0, 1)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=True)


def sparsegpt(
    weight: torch.Tensor, second_moment: torch.Tensor, pattern: Pattern, fraction: float, *, damping: float = 0.01, block: int = 128
) -> Solved:
    """Removes weights block of columns by block of columns, and updates all columns to the right.

    Args:
        weight: shape (R, C).
        second_moment: H, shape (C, C).
        pattern: unstructured or n:m.
        fraction: of the weights of each block of columns, for unstructured; zeros that are there already count, and stay.
        damping: of H, relative to its mean diagonal.
        block: columns whose effect on those beyond them is added up and applied at once.

    Raises:
        TrimlineError: m does not divide C or ``block``, or H cannot be factorised.
    """
    pattern.check_width(weight.shape[1], "A weight")
    pattern.check_width(block, "SparseGPT's block of columns (options.block_size)")
    factor = inverse_factor(second_moment, damping).float()
    # Transposed, so that a column, which every step below touches, is contiguous.
    columns = weight.float().T.contiguous()
    columns[second_moment.diagonal() == 0] = 0
    before, error = columns == 0, 0.0
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        errors = _prune_block(columns[start:stop], factor[start:stop, start:stop], pattern, fraction, before[start:stop])
        columns[stop:] -= factor[start:stop, stop:].T @ errors
        error += 0.5 * errors.square().sum(dtype=torch.float64).item()
    return Solved(columns.T.contiguous(), error)


def _prune_block(columns: torch.Tensor, factor: torch.Tensor, pattern: Pattern, fraction: float, before: torch.Tensor) -> torch.Tensor:
    """Prunes a block in place, left to right; the errors w / U_ii of what went, shape (B, R).

    Args:
        columns: (B, R), the block's columns as rows.
        factor: U of the block, (B, B).
        before: what was zero before any column was updated, shape (B, R).
    """
    diagonal = factor.diagonal()[:, None]

    def scores(part: slice) -> torch.Tensor:
        """Of the weights as updated so far; an earlier shot's zeros go first."""
        return (columns[part].square() / diagonal[part].square()).masked_fill(before[part], -1.0)

    gone = torch.zeros_like(columns, dtype=torch.bool) if pattern.grouped else below(scores(slice(None)), fraction)
    errors = torch.zeros_like(columns)
    for i in range(len(columns)):
        if pattern.grouped and i % pattern.group == 0:
            group = slice(i, i + pattern.group)
            gone[group] = n_m(scores(group).T, pattern.zeros, pattern.group).T
        errors[i] = torch.where(gone[i], columns[i], 0.0) / diagonal[i]
        columns[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        columns[i].masked_fill_(gone[i], 0.0)
    return errors


def below(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """What is at or below the ⌊n · fraction⌋-th smallest of all n, counted from 0: one more than the fraction, and ties."""
    threshold = scores.flatten().sort().values[int(scores.numel() * fraction)]
    return scores <= threshold


class SparseGPTOptions(Slice):
    """Options of SparseGPT."""

    damping: float = Field(0.01, gt=0.0, le=1e3, description="of the second moment, in units of its mean diagonal")
    block_size: int = Field(128, ge=1, le=2**16, description="columns that share one threshold and are updated together")


class SparseGPT:
    """Single weights, chosen and made up for column by column; exactly what was published."""

    name = "sparsegpt"
    spaces = frozenset({Space.WEIGHT})
    options = SparseGPTOptions

    def weight_needs(self, step: ResolvedStep) -> Needs:
        """Second moments of the inputs of every projection."""
        return Needs(gram=frozenset(Point))

    def prune(self, layer: LayerView, pattern: Pattern, remove: float, step: ResolvedStep) -> torch.Tensor:
        """Zeros and updated weights."""
        assert layer.inputs is not None
        options = options_of(step, SparseGPTOptions)
        moment = hessian(layer.inputs.gram(), layer.statistics.sequences)
        return sparsegpt(layer.weight, moment, pattern, remove, damping=options.damping, block=options.block_size).weight
