"""What methods share that score experts by what routers send them (``pipeline.calibrate.routed``)."""

from __future__ import annotations

from typing import Any

from pipeline.architecture.spaces import Space
from pipeline.calibrate.needs import Needs
from pipeline.prune.methods.method import NoOptions
from pipeline.prune.step import ResolvedStep


class OfExperts:
    """A method over experts; each says its name and its score."""

    spaces = frozenset({Space.EXPERT})
    allocation = "uniform"
    options: Any = NoOptions

    def needs(self, step: ResolvedStep) -> Needs:
        """What the experts give."""
        return Needs(routed=True)
