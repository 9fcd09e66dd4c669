"""Sizes that lose least under several bounds at once, as an integer program for SciPy's HiGHS.

For every index set (a block's FFN channels, a block's KV groups) exactly one of its sizes is chosen; what the choices cost
adds up, in each measure, to no more than its bound:

    minimise Σ loss(i, s) x(i, s)  subject to  Σ_s x(i, s) = 1,  Σ cost_c(i, s) x(i, s) ≤ bound_c,  x binary

With parameters and FLOPs as two bounds it is the problem of FALCON (arXiv 2403.07094), with units for its weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pipeline.common.errors import TrimlineError

Key = TypeVar("Key", bound=Hashable)
SLACK = 1e-6  # what the solver may exceed a bound by, as a share of it
LEAST = 1e-6  # of the largest loss: what is lost may be nothing at all
INFEASIBLE = 2  # status of ``milp``
GAP = 1e-5  # between what it found and what is possible, as a share of the loss


@dataclass(frozen=True)
class Choice:
    """What one index set may be.

    Attributes:
        sizes: that it may have; the first is what it has now.
        losses: of each, in any unit; smaller is better.
        costs: per measure, of each size.
    """

    sizes: Sequence[int]
    losses: Sequence[float]
    costs: Mapping[str, Sequence[float]]


def least_loss(choices: Mapping[Key, Choice], bounds: Mapping[str, float]) -> dict[Key, int] | None:
    """The size of every index set, or None where even the cheapest sizes exceed a bound.

    Args:
        choices: by index set.
        bounds: per measure, the most that all may cost together.

    Raises:
        TrimlineError: the solver gives up.
    """
    if any(sum(min(choice.costs[name]) for choice in choices.values()) > bound for name, bound in bounds.items()):
        return None
    found = _solve(choices, bounds)
    if not _within(found, choices, bounds):  # the solver took its tolerance
        found = _solve(choices, {name: bound - SLACK * abs(bound) for name, bound in bounds.items()})
    if not _within(found, choices, bounds):  # what fits is nearer to the bound than the solver can tell
        found = _smallest(choices)
    return {key: choices[key].sizes[place] for key, place in found.items()}


def _solve(choices: Mapping[Key, Choice], bounds: Mapping[str, float]) -> dict[Key, int]:
    losses = np.concatenate([np.asarray(choice.losses, dtype=float) - min(choice.losses) for choice in choices.values()])
    lengths = [len(choice.sizes) for choice in choices.values()]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    one_each = LinearConstraint(csr_array((np.ones(len(owner)), (owner, np.arange(len(owner))))), 1, 1)
    limits = []
    for name, bound in bounds.items():
        costs = np.concatenate([np.asarray(choice.costs[name], dtype=float) for choice in choices.values()])
        scale = costs.mean() or 1.0  # the solver's tolerances are absolute, and made for numbers around 1
        limits.append(LinearConstraint(costs / scale, -np.inf, bound / scale))
    constraints = [one_each, *limits]
    relaxed = milp(losses, constraints=constraints, bounds=Bounds(0, 1))
    # The solver's tolerances are absolute: the loss of the best that fractions could do becomes 1.
    scale = max(relaxed.fun or 0.0, LEAST * losses.max()) or 1.0
    best = milp(losses / scale, constraints=constraints, bounds=Bounds(0, 1), integrality=1, options={"mip_rel_gap": GAP})
    if best.x is None:
        if best.status != INFEASIBLE:
            raise TrimlineError(f"The solver ended without sizes ({best.message}).", "Ask for fewer bounds at once, or a coarser round_to.")
        return _smallest(choices)  # it finds no room where only these fit, to the last digit
    chosen, start = {}, 0
    for key, length in zip(choices, lengths, strict=True):
        chosen[key] = int(np.argmax(best.x[start : start + length]))
        start += length
    return chosen


def _smallest(choices: Mapping[Key, Choice]) -> dict[Key, int]:
    return {key: int(np.argmin(choice.sizes)) for key, choice in choices.items()}


def _within(places: Mapping[Key, int], choices: Mapping[Key, Choice], bounds: Mapping[str, float]) -> bool:
    return all(sum(choices[key].costs[name][place] for key, place in places.items()) <= bound for name, bound in bounds.items())
