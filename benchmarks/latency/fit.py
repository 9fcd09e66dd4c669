"""From times of models whose blocks are alike to what each part of one block takes.

A model of n blocks with width w and g KV groups takes ``fixed + n · (attention(g) + ffn(w))``. Both curves are sums of
steps that are not negative, so they never fall; the steps are found by non-negative least squares on relative errors.

As many shapes are timed as there are steps, so that without more the table would repeat every error of a measurement, and an
allocation would choose by errors. From its smallest size on, a curve is therefore as straight as the noise allows: changes of
slope cost, as much as leaves the fit no farther from what was measured than dense was from itself (Morozov's principle).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.latency.shapes import Alike
from pipeline.prune.latency import Times

COSTS = (*(10.0**power for power in range(4, -5, -1)), 0.0)  # of changes of slope, in shares of what dense takes
Matrix = NDArray[np.float64]


def fit(shapes: Mapping[str, Alike], seconds: Mapping[str, float], noise: float = 0.0) -> Times:
    """Times of the parts.

    Args:
        shapes: what was timed, by name.
        seconds: what each took.
        noise: the relative error of those, as a standard deviation.
    """
    widths = sorted({shape.width for shape in shapes.values()} - {0})
    groups = sorted({shape.groups for shape in shapes.values()} - {0})
    times = np.array([seconds[name] for name in shapes])
    # Divided by the time that they explain, so that a fast shape counts as much as a slow one.
    rows = np.array([_row(shape, widths, groups) for shape in shapes.values()]) / times[:, None]
    bends = max(shape.blocks for shape in shapes.values()) / times.max() * _bends(widths, groups)
    for cost in COSTS:  # the last one costs nothing, and is as near as can be
        found = _steps(rows, bends, cost)
        if np.sqrt(np.mean((rows @ found - 1) ** 2)) <= noise:
            break
    ffn = np.cumsum([0.0, *found[1 : 1 + len(widths)]])
    attention = np.cumsum([0.0, *found[1 + len(widths) :]])
    # Absent is 0; from the first measured number of groups on, straight lines between those that were measured.
    every = [0.0, *np.interp(range(1, groups[-1] + 1), groups, attention[1:])]
    return Times(float(found[0]), tuple(map(float, every)), (0, *widths), tuple(map(float, ffn)))


def _row(shape: Alike, widths: Sequence[int], groups: Sequence[int]) -> list[float]:
    """How often every step counts in a shape: the fixed part, then the FFN's, then the attention's."""
    return [
        1.0,
        *(shape.blocks * (shape.width >= width) for width in widths),
        *(shape.blocks * (shape.groups >= group) for group in groups),
    ]


def _bends(widths: Sequence[int], groups: Sequence[int]) -> Matrix:
    """Changes of slope over all sizes of a curve, a row each; the step to its smallest size has no slope."""
    rows = []
    for first, sizes in ((1, widths), (1 + len(widths), groups)):
        for place in range(1, len(sizes) - 1):
            row = np.zeros(1 + len(widths) + len(groups))
            row[first + place] = -1 / (sizes[place] - sizes[place - 1])
            row[first + place + 1] = 1 / (sizes[place + 1] - sizes[place])
            rows.append(row * (sizes[-1] - sizes[0]))
    return np.array(rows).reshape(len(rows), 1 + len(widths) + len(groups))


def _steps(rows: Matrix, bends: Matrix, cost: float) -> Matrix:
    """The steps that explain times of 1 with bends that cost."""
    found, _ = nnls(np.vstack([rows, cost**0.5 * bends]), np.concatenate([np.ones(len(rows)), np.zeros(len(bends))]))
    return found


def misfit(times: Times, shapes: Mapping[str, Alike], seconds: Mapping[str, float]) -> dict[str, float]:
    """Predicted over measured − 1, of every shape that was timed."""
    return {name: model_seconds(times, shape) / seconds[name] - 1 for name, shape in shapes.items()}


def model_seconds(times: Times, shape: Alike) -> float:
    """What a model takes by the table."""
    block = times.attention[shape.groups] + times.ffn[times.widths.index(shape.width)]
    return times.fixed + shape.blocks * block
