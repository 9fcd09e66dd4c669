"""Experts by the loss that removing them causes: ours.

For every token and each of its experts, the loss moves by about m = δ · (y' − y) where that expert could not be chosen: y' is what the
others and the next best one would add with their weights shared out anew (``pipeline.calibrate.routed_gradients``). Summed over the tokens
of an expert that is the first-order change of the loss without it. A trained model is near a minimum, so that the first order is small
and the second counts: with the empirical Fisher matrix in the place of the Hessian and tokens taken for independent, it is
½ (S − 1) Σ m², since m is of a sequence's mean loss over S − 1 predictions and the Fisher matrix of their sum. An expert scores

    mean over sequences of Σ m + ½ (S − 1) Σ m²        (``terms: both``),

in nats per token. What published scores leave out is in it: how the rest of the model reads what an expert adds, and who takes its place.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import GradientNeeds, Needs
from pipeline.common.errors import TrimlineError
from pipeline.common.slices import Slice
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.methods.of_experts import OfExperts
from pipeline.prune.step import ResolvedStep


def expert_loss(moves: torch.Tensor, squares: torch.Tensor, predictions: float, terms: str = "both") -> torch.Tensor:
    """Estimated loss per token that removing each expert causes, shape (E,).

    Args:
        moves: Σ m of each sequence, (N, E).
        squares: Σ m² of each sequence, (N, E).
        predictions: of a sequence, S − 1.
        terms: ``first``, ``second`` or ``both``.
    """
    first, second = moves.mean(dim=0), 0.5 * predictions * squares.mean(dim=0)
    return {"first": first, "second": second, "both": first + second}[terms]


class ExpertLossOptions(Slice):
    """Options of ``expert_loss``."""

    terms: Literal["both", "first", "second"] = Field("both", description="of the expansion of the loss")


class ExpertLoss(OfExperts):
    """Experts by the loss that removing them causes, the next best in their place."""

    name = "expert_loss"
    options = ExpertLossOptions

    def check(self, step: ResolvedStep) -> None:
        """Raises TrimlineError where the step is to be sequential: gradients flow from the last block to the first."""
        if step.recipe.sequential:
            raise TrimlineError("expert_loss measures gradients of the whole model, not block after block.",
                                "Leave sequential out, or give shots: each measures what the one before left.")  # fmt: skip

    def needs(self, step: ResolvedStep) -> Needs:
        """How the loss moves without each token's experts."""
        return Needs(gradients=GradientNeeds(experts=True))

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Score per expert, shape (E,)."""
        gradients = view.statistics.gradients
        assert gradients is not None
        predictions = gradients.tokens / gradients.sequences - 1
        found, terms = gradients.experts, options_of(step, ExpertLossOptions).terms
        return expert_loss(found["moves"], found["squares"], predictions, terms)
