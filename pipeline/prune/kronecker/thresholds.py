"""One threshold for a whole model: what costs no more goes (LLM Surgeon, arXiv 2312.17244, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

Stream = Callable[[], Iterable[torch.Tensor]]  # the same costs on every call, piece by piece
BINS = 2**16


def kth_smallest(costs: Stream, count: int) -> float:
    """The ``count``-th smallest of all costs, exactly, without holding more than one piece of them.

    Floats that are not negative sort like their bit patterns, so that two passes that count 16 bits each find it. The
    published threshold for single weights is that of count + 1: it removes one weight too many.

    Args:
        costs: pieces of any shape, fp32, ≥ 0; read twice.
        count: from 1 to their number.
    """
    upper, before = _bin_of(_counts(costs, None), count)
    lower, _ = _bin_of(_counts(costs, upper), count - before)
    pattern = torch.tensor([(upper << 16) | lower], dtype=torch.int64).to(torch.int32)
    return pattern.view(torch.float32).item()


def _counts(costs: Stream, upper: int | None) -> torch.Tensor:
    """How many costs have each upper half of bits; or each lower half, among those whose upper half is given."""
    counted = torch.zeros(BINS, dtype=torch.int64)
    for piece in costs():
        bits = piece.detach().float().contiguous().flatten().view(torch.int32)
        chosen = bits >> 16 if upper is None else bits[bits >> 16 == upper] & (BINS - 1)
        counted += torch.bincount(chosen, minlength=BINS).cpu()
    return counted


def _bin_of(counted: torch.Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the ``count``-th, and how many lie in the bins below it."""
    reached = counted.cumsum(0)
    found = int(torch.searchsorted(reached, count))
    return found, int(reached[found - 1]) if found else 0


def structured_threshold(rows: Sequence[torch.Tensor], columns: Sequence[torch.Tensor], target: int) -> float:
    """The largest cost up to which rows and columns can go without removing more than ``target`` weights.

    Bisection over the costs themselves. In a layer of R rows and C columns of which p and q go, p·C + q·R − p·q weights
    go. Minus infinity where even the cheapest is too much.

    Args:
        rows, columns: costs per layer, shapes (R,) and (C,), any float dtype.
        target: how many weights of all layers may go.
    """
    ordered = [(r.sort().values, c.sort().values) for r, c in zip(rows, columns, strict=True)]
    candidates = torch.cat([torch.cat(pair) for pair in ordered]).unique()
    low, high = 0, len(candidates)  # so many candidates are known to be allowed; from so many on they are not
    while low < high:
        middle = (low + high) // 2
        if sum(_removed(r, c, candidates[middle]) for r, c in ordered) <= target:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1].item() if low else float("-inf")


def _removed(rows: torch.Tensor, columns: torch.Tensor, threshold: torch.Tensor) -> int:
    p, q = (int(torch.searchsorted(costs, threshold.to(costs), right=True)) for costs in (rows, columns))
    return p * len(columns) + q * len(rows) - p * q


def group_mask(costs: torch.Tensor, zeros: int, group: int, threshold: float) -> torch.Tensor:
    """Which weights go, shape (R, C), bool: the ``zeros`` cheapest of every group whose sum is at most ``threshold``.

    Exactly ``zeros`` of a group go: among equals the first.

    Args:
        costs: shape (R, C); C a multiple of ``group``.
    """
    ordered, places = costs.unflatten(1, (-1, group)).sort(stable=True)
    allowed = ordered[..., :zeros].sum(-1, keepdim=True) <= threshold
    mask = torch.zeros(ordered.shape, dtype=torch.bool, device=costs.device)
    return mask.scatter_(-1, places[..., :zeros], allowed.expand(*allowed.shape[:-1], zeros)).flatten(1)
