"""From times of models whose blocks are alike to what each part of one block takes.

A model of n blocks with width w and g KV groups takes ``fixed + n · (attention(g) + ffn(w))``. Both curves are sums of
steps that are not negative, so they never fall; the steps are found by non-negative least squares on relative errors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import nnls

from benchmarks.latency_shapes import Alike
from pipeline.allocation.latency import Times


def fit(shapes: Mapping[str, Alike], seconds: Mapping[str, float]) -> Times:
    """Times of the parts.

    Args:
        shapes: what was timed, by name.
        seconds: what each took.
    """
    widths = sorted({shape.width for shape in shapes.values()} - {0})
    groups = sorted({shape.groups for shape in shapes.values()} - {0})
    times = np.array([seconds[name] for name in shapes])
    rows = [
        [1.0, *(shape.blocks * (shape.width >= width) for width in widths), *(shape.blocks * (shape.groups >= group) for group in groups)]
        for shape in shapes.values()
    ]
    # Divided by the time that they explain, so that a fast shape counts as much as a slow one.
    found, _ = nnls(np.array(rows) / times[:, None], np.ones(len(times)))
    ffn = np.cumsum([0.0, *found[1 : 1 + len(widths)]])
    attention = np.cumsum([0.0, *found[1 + len(widths) :]])
    # Absent is 0; from the first measured number of groups on, straight lines between those that were measured.
    every = [0.0, *np.interp(range(1, groups[-1] + 1), groups, attention[1:])]
    return Times(float(found[0]), tuple(map(float, every)), (0, *widths), tuple(map(float, ffn)))


def misfit(times: Times, shapes: Mapping[str, Alike], seconds: Mapping[str, float]) -> dict[str, float]:
    """Predicted over measured − 1, of every shape that was timed."""
    return {name: model_seconds(times, shape) / seconds[name] - 1 for name, shape in shapes.items()}


def model_seconds(times: Times, shape: Alike) -> float:
    """What a model takes by the table."""
    block = times.attention[shape.groups] + times.ffn[times.widths.index(shape.width)]
    return times.fixed + shape.blocks * block
