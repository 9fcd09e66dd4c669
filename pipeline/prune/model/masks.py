"""Which single weights go: masks from scores, True where a weight is removed.

A pattern ``n:m`` means n zeros in every m consecutive inputs of a row (Wanda's and SparseGPT's way of counting). Groups
start at the first column that is passed, so where units are gone already, callers pass the columns that are left: these
lie side by side in the smaller model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from pipeline.common.errors import TrimlineError

PATTERNS = "unstructured, or n:m with 0 < n < m, such as 2:4"
LARGEST_GROUP = 1024


@dataclass(frozen=True)
class Pattern:
    """Where zeros may stand.

    Attributes:
        zeros: n of n:m; 0 for unstructured.
        group: m of n:m; 1 for unstructured, so that it divides every width.
    """

    zeros: int = 0
    group: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads ``unstructured`` or ``n:m``.

        Raises:
            TrimlineError: it is neither, or n is not between 1 and m − 1.
        """
        if text == "unstructured":
            return cls()
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text, flags=re.ASCII)
        if not found or not 0 < int(found[1]) < int(found[2]) <= LARGEST_GROUP:
            raise TrimlineError(f"{text!r} is no pattern of zeros.", f"Write {PATTERNS}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.zeros}:{self.group}" if self.grouped else "unstructured"

    @property
    def grouped(self) -> bool:
        return self.zeros > 0

    @property
    def fraction(self) -> float | None:
        """The share of weights that goes; None where the budget says it."""
        return self.zeros / self.group if self.grouped else None

    def check_width(self, columns: int, what: str) -> None:
        """Whether rows of this length hold whole groups.

        Raises:
            TrimlineError: they do not; ``what`` names the weight.
        """
        if columns % self.group:
            raise TrimlineError(
                f"{what} has {columns} inputs, and {columns} is not a multiple of {self.group}, which the pattern {self} needs.",
                f"Keep a multiple of {self.group} inputs, or use the pattern unstructured.",
            )


def smallest(scores: torch.Tensor, count: int | torch.Tensor) -> torch.Tensor:
    """The ``count`` smallest along the last axis, the first among equals; shape of ``scores``, bool.

    Args:
        scores: any shape (..., C), no NaN.
        count: how many of each line; an int, or a tensor that broadcasts to (..., 1).
    """
    order = scores.sort(dim=-1, stable=True).indices
    first = torch.arange(scores.shape[-1], device=scores.device) < count
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, first.expand(order.shape))


def per_row(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """The ⌊C · fraction⌋ smallest of every row; scores and result (R, C)."""
    return smallest(scores, int(scores.shape[1] * fraction))


def per_matrix(scores: torch.Tensor, fraction: float) -> torch.Tensor:
    """The ⌊R · C · fraction⌋ smallest of the whole matrix; scores and result (R, C)."""
    return smallest(scores.flatten(), int(scores.numel() * fraction)).view_as(scores)


def n_m(scores: torch.Tensor, zeros: int, group: int) -> torch.Tensor:
    """The ``zeros`` smallest in every ``group`` consecutive inputs of a row; scores and result (R, C).

    Raises:
        TrimlineError: ``group`` does not divide C.
    """
    Pattern(zeros, group).check_width(scores.shape[1], "A weight")
    return smallest(scores.unflatten(1, (-1, group)), zeros).flatten(1)


def row_mask(scores: torch.Tensor, pattern: Pattern, fraction: float) -> torch.Tensor:
    """By the pattern; unstructured weights compete within their row. Scores and result (R, C)."""
    return n_m(scores, pattern.zeros, pattern.group) if pattern.grouped else per_row(scores, fraction)
