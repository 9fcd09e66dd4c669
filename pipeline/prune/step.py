"""A step of the recipe, resolved: what the recipe leaves to its method is decided, and nothing is looked up after that.

``pipeline.prune.steps`` makes these. Which kind of step it is (units by scores, single weights, a method's own run) only the
classes know; whoever has a step asks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.measurements import Measurements, Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import GivenStatistics
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.slices import Slice
from pipeline.plan.plan import Step
from pipeline.plan.selection import Selection
from pipeline.prune.consumer import Consumer
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import Budget, Pool, PruneStep

Resolved = TypeVar("Resolved", bound="ResolvedStep")


class Method(Protocol):
    """Common to all methods: what recipes need to know."""

    name: str
    spaces: frozenset[Space]

    @property
    def options(self) -> type[Slice]:
        """The model of its options."""


@dataclass(frozen=True, kw_only=True)
class ResolvedStep(ABC):
    """One step: what the recipe states, and what that comes to.

    Attributes:
        recipe: as it is stated.
        method: that it names.
        spaces: what it is about; of a target that names none, what the method scores.
        options: the method's own, validated.
        rule: how a budget is spread over the blocks.
        pools: a target is met by one budget for all spaces together, whose units compete by score.
        consumer: what will run the result; targets are stated for it.
        work: folder of what a step that was stopped goes on from; None keeps nothing.
    """

    recipe: PruneStep
    method: Method
    spaces: tuple[Space, ...]
    options: Slice
    rule: str = "global"
    pools: bool = True
    consumer: Consumer = field(default_factory=Consumer)
    work: Path | None = None

    @abstractmethod
    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        """Shrinks ``model``, and says shot by shot what was decided.

        Args:
            model: what the step before left.
            windows: calibration tokens, shape (N, S).
            events: progress.
            measurements: what ``measure`` gave for this model, where that is known.
        """

    def demand_units(self, left: Selection) -> None:
        """Whether earlier steps left anything of what this one is about; of spaces that share a budget, one is enough.

        Raises:
            TrimlineError: they did not.
        """
        gone = [space for space in self.spaces if _is_gone(space, left)]
        if gone and (self.recipe.budget or len(gone) == len(self.spaces)):
            raise TrimlineError(
                f"Nothing is left of {gone[0]} when {self.recipe.method} is to remove some of it: earlier steps removed it all, or the model "
                "has no block with any.",
                "Leave that space or that step out.",
            )

    def measure(self, model: ShrinkingModel, windows: torch.Tensor, events: Events, given: GivenStatistics | None = None) -> Measurements:
        """What the first shot measures, the same for every budget; only where ``gram_bytes`` says something.

        Args:
            model, windows, events: as for ``run``.
            given: statistics of this model on these windows, where they are known; without, it is swept.
        """
        raise NotImplementedError(f"{self.recipe.method} measures as it goes")

    def gram_bytes(self, geometry: Geometry) -> int | None:
        """Of the Gram matrices in what ``measure`` gives for a model; None where the step measures as it goes."""
        return None

    @property
    def statistics(self) -> Needs | None:
        """What the first shot has swept before it decides anything; None where the step measures as it goes."""
        return None

    @property
    def reads_text(self) -> bool:
        """Whether it measures anything on the calibration text."""
        return True

    @property
    def measures_importance(self) -> bool:
        """Whether the importance of blocks is among what is measured."""
        return False

    @property
    def is_even(self) -> bool:
        """Whether a pooled budget leaves blocks that are alike, alike."""
        return False

    @property
    def record(self) -> dict[str, Any]:
        """The step in a plan: what the recipe states."""
        return self.recipe.model_dump(mode="json", exclude_none=True)

    def stating(self, **changed: Any) -> Self:
        """The same step, with some of what the recipe states changed."""
        return replace(self, recipe=self.recipe.model_copy(update=changed))

    def as_budget(self) -> Self:
        """A step with a target as one with a budget that leaves shapes of the same kind: what may be uneven, before anything is known."""
        if self.recipe.target is None:
            return self
        if Space.LAYER not in self.spaces and self.pools:
            return self.stating(target=None, pooled=Pool(spaces=self.spaces, remove=0.5, allow_empty=self.recipe.allow_empty))
        return self.stating(target=None, budget={space: Budget(remove=0.5) for space in self.spaces})


def _is_gone(space: Space, left: Selection) -> bool:
    """Whether no block holds any of a space; single weights are in both sublayers."""
    sublayers = tuple(Sublayer) if space is Space.WEIGHT else tuple(kind for known, kind in SUBLAYERS.items() if known is space)
    return bool(sublayers) and not any(left.units(kind)[block] for kind in sublayers for block in left.blocks)
