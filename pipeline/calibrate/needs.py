"""Which statistics a sweep is to collect."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.architecture.families import Point, Sublayer


@dataclass(frozen=True)
class GradientNeeds:
    """What is collected; joined with ``|``, false where that is nothing. Projections go by their names inside a block.

    Attributes:
        weights: projections whose weight gradients are summed over sequences, as |g| and as g².
        kronecker: projections whose output gradients are multiplied into a second moment, and their inputs likewise.
        masks: sublayers whose reader's inputs get a mask, of which each sequence has a gradient.
        experts: how the loss moves, to first order, where a token's expert could not be chosen.
        half: both sums as the published GBLM-Pruner adds them up: g of each sequence is rounded to fp16, where much of it is
            subnormal or nothing; 100·|g| is again, and its sum kept in fp16. It is divided by 100 again at the end.
        relative: in the second moments a token's inputs x count √w times and its gradients g 1/√w times, where w is one over the mean
            square of the residual stream there. g ⊗ x of a token is what it was; but a token with massive activations has a large x and,
            behind the norm, a small g, and would be most of the one moment and nothing of the other.
    """

    weights: frozenset[str] = frozenset()
    kronecker: frozenset[str] = frozenset()
    masks: frozenset[Sublayer] = frozenset()
    half: bool = False
    experts: bool = False
    relative: bool = False

    def __or__(self, other: GradientNeeds) -> GradientNeeds:
        return GradientNeeds(
            self.weights | other.weights,
            self.kronecker | other.kronecker,
            self.masks | other.masks,
            self.half or other.half,
            self.experts or other.experts,
            self.relative or other.relative,
        )

    def __bool__(self) -> bool:
        return bool(self.weights or self.kronecker or self.masks or self.experts)


@dataclass(frozen=True)
class Needs:
    """What a recipe's step needs, so that a sweep collects that and nothing else.

    Attributes:
        distance: angular distance between a block's input and output.
        squares: where inputs are squared and summed per channel.
        gram: where inputs are multiplied into a Gram matrix.
        fluctuation: where inputs are followed sequence by sequence.
        routed: what routed experts give, token by token.
        gradients: what a second sweep, backwards, collects; None without one.
    """

    distance: bool = False
    squares: frozenset[Point] = frozenset()
    gram: frozenset[Point] = frozenset()
    fluctuation: frozenset[Point] = frozenset()
    gradients: GradientNeeds | None = None
    routed: bool = False

    def __or__(self, other: Needs) -> Needs:
        both = self.gradients | other.gradients if self.gradients and other.gradients else self.gradients or other.gradients
        return Needs(
            distance=self.distance or other.distance,
            squares=self.squares | other.squares,
            gram=self.gram | other.gram,
            fluctuation=self.fluctuation | other.fluctuation,
            gradients=both,
            routed=self.routed or other.routed,
        )

    @property
    def points(self) -> frozenset[Point]:
        return self.squares | self.gram | self.fluctuation

    @property
    def forward(self) -> bool:
        """Whether a forward sweep has anything to collect."""
        return self.distance or self.routed or bool(self.points)

    def __bool__(self) -> bool:
        """Whether any sweep has."""
        return self.forward or bool(self.gradients)
