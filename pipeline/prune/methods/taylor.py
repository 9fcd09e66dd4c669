"""Taylor importance: how much the loss of a sequence moves, to first order, when a unit goes.

Multiply what a unit hands to its reader by m. Then ∂loss/∂m at m = 1 is Σ weight · gradient over the unit's columns W[:, j] in
the reader, and minus it is what the first-order expansion says of m = 0, the unit gone. The importance is the mean over
sequences of its absolute value: the sum over the unit's weights is taken with signs, that over sequences without.

That is the criterion of Molchanov et al. on activations (arXiv 1611.06440), where a sequence stands for an image, and their form
with a gate per unit (arXiv 1906.10771), which averages the square where this averages the absolute value. In LLM-Pruner's terms
(arXiv 2305.11627) it is the first-order, vector-wise importance of the group's last structure; there the gradient is summed over
the data before the absolute value is taken. The other reading of "|weight · gradient|", a sum of absolute values over single
weights, is the gradient's term of ``gblm``.

Only the reader counts. Where nothing but a product stands between, as behind ``up_proj``, the rows that write a channel give
the same sum if they have no bias; those of the gate, which an activation bends, give another.
"""

from __future__ import annotations

import torch

from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.needs import GradientNeeds, Needs
from pipeline.prune.methods.method import BlockView, NoOptions
from pipeline.prune.step import ResolvedStep


def taylor_importance(slopes: torch.Tensor, width: int) -> torch.Tensor:
    """Mean over sequences of |∂loss/∂m| per unit, shape (C / width,).

    Args:
        slopes: ∂loss/∂m of each sequence, of a mask over the C inputs of the reader, shape (N, C).
        width: consecutive inputs that are one unit, and share one m.
    """
    return slopes.unflatten(1, (-1, width)).sum(dim=2).abs().mean(dim=0)


class Taylor:
    """FFN channels and KV groups by the first-order change of the loss."""

    name = "taylor"
    spaces = frozenset(SUBLAYERS)
    allocation = "uniform"
    options = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """Gradients of a mask over the inputs of the projections that read the units."""
        return Needs(gradients=GradientNeeds(masks=frozenset(SUBLAYERS[space] for space in step.spaces)))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Importance per unit, shape (units,); 0 where a unit went before, since it hands on zeros."""
        sublayer, gradients = SUBLAYERS[space], view.statistics.gradients
        assert gradients is not None
        reader = view.geometry.family.reader(sublayer)
        return taylor_importance(gradients.masks[sublayer], view.geometry.unit_width(reader.columns))
