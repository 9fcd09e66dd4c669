"""LLM Surgeon as published: rows and columns of each projection by itself, zeroed, under one threshold for all of them.

Nothing gets smaller by this, since each projection zeroes inputs and outputs of its own. What is zero in one is not in
those that write or read it, but for what the dead rule of later shots finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.common.events import Events
from pipeline.prune.kronecker.projection import Variant, activation_costs
from pipeline.prune.kronecker.thresholds import structured_threshold
from pipeline.prune.kronecker.waiting import WaitingFactors
from pipeline.prune.methods.surgeon_factors import ROWS_AND_COLUMNS, WeightOptions, measured_factors, measured_inputs, projection_of
from pipeline.prune.model.remaining import Remaining
from pipeline.prune.model.shrinking import ShrinkingModel


@dataclass(frozen=True)
class Structures:
    """A projection between measuring and pruning: costs of its R rows and its C columns, the bias as a last column."""

    left: Remaining
    rows: torch.Tensor
    columns: torch.Tensor


def remove_structures(
    model: ShrinkingModel, windows: torch.Tensor, fraction: float, options: WeightOptions, waiting: WaitingFactors, events: Events
) -> dict[str, Any]:
    """One shot; ``fraction`` of all weights and biases is zero at its end, or the most below it. The numbers behind it."""
    measured = (
        _inputs_alone(model, windows, events) if options.variant is Variant.L_OBD else _both(model, windows, options, waiting, events)
    )
    found = sorted(measured, key=lambda s: (s.left.block, s.left.linear.point, len(s.columns)))
    threshold = _threshold(found, fraction, options)
    gone: dict[str, list[int]] = {}
    zeros = total = 0
    with events.progress("removing rows and columns", len(found)) as advance:
        for structures in found:
            rows, columns = _going(structures, threshold, options)
            pruned = _pruned(structures.left, rows, columns, options, waiting)
            structures.left.store(pruned, "unstructured")
            gone[f"{structures.left.block}.{structures.left.linear.name}"] = [int(rows.sum()), int(columns.sum())]
            zeros, total = zeros + int((pruned == 0).sum()), total + pruned.numel()
            advance(1)
    stated = threshold if math.isfinite(threshold) else None
    return {"threshold": stated, "zero fraction": zeros / max(total, 1), "rows and columns gone": gone}


def _both(
    model: ShrinkingModel, windows: torch.Tensor, options: WeightOptions, waiting: WaitingFactors, events: Events
) -> Iterator[Structures]:
    for left, inputs, outputs in measured_factors(model, windows, events):
        projection = projection_of(left, inputs, outputs, options.damping(ROWS_AND_COLUMNS))
        if options.variant is Variant.SURGEON:
            waiting.put(left.block, left.linear, inputs, outputs)
        yield Structures(left, projection.row_costs(options.variant), projection.column_costs(options.variant))


def _inputs_alone(model: ShrinkingModel, windows: torch.Tensor, events: Events) -> Iterator[Structures]:
    for left, squares in measured_inputs(model, windows, events):
        costs = activation_costs(left.weight(squares.device), squares).double()
        yield Structures(left, costs.sum(1), costs.sum(0))


def _threshold(found: Sequence[Structures], fraction: float, options: WeightOptions) -> float:
    total = sum(len(s.rows) * len(s.columns) for s in found)
    costs = [(s.rows.cpu(), _columns_that_may_go(s, options).cpu()) for s in found]
    return structured_threshold([rows for rows, _ in costs], [columns for _, columns in costs], math.floor(fraction * total + 1e-6))


def _columns_that_may_go(structures: Structures, options: WeightOptions) -> torch.Tensor:
    """Their costs; without end for a bias that the recipe keeps."""
    kept = structures.left.biased and not options.biases
    return torch.cat((structures.columns[:-1], structures.columns.new_full((1,), math.inf))) if kept else structures.columns


def _going(structures: Structures, threshold: float, options: WeightOptions) -> tuple[torch.Tensor, torch.Tensor]:
    return structures.rows <= threshold, _columns_that_may_go(structures, options) <= threshold


def _pruned(left: Remaining, rows: torch.Tensor, columns: torch.Tensor, options: WeightOptions, waiting: WaitingFactors) -> torch.Tensor:
    """New weights of what is left, the bias as a last column."""
    if options.variant is not Variant.SURGEON:
        return left.weight(rows.device).masked_fill(rows[:, None] | columns, 0.0)
    factors = waiting.take(left.block, left.linear, len(columns))
    return projection_of(left, *factors, options.damping(ROWS_AND_COLUMNS)).without(rows, columns, options.correlation).float()
