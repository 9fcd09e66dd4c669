"""FLAP (arXiv 2312.11983): channels that fluctuate little go, and a bias takes up their mean.

FFN channels and KV groups; the published heads are KV groups with every query head that reads them, one to one where
the model has no grouped queries. The other half of the system is ``compensation: bias``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import SUBLAYERS, Counts, IndexSet, Space
from pipeline.calibrate.measurements import Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import InputStatistics, activation_norm
from pipeline.common.errors import TrimlineError
from pipeline.common.slices import Slice
from pipeline.prune.allocation.pooled import above, kept_facts, pooled_allocation, rounded_counts, unit_sizes, whole_of
from pipeline.prune.methods.method import BlockView, options_of
from pipeline.prune.recipe import Pool
from pipeline.prune.step import ResolvedStep

SLACK = 1e-9  # a fraction times a count that is whole but for rounding counts as whole


def wifv(fluctuation: torch.Tensor, reader: torch.Tensor) -> torch.Tensor:
    """Weighted input feature variance (eq. 4): fluctuation times the squared norm of the channel's column, shape (C,).

    Args:
        fluctuation: per channel, shape (C,).
        reader: weight of the projection that reads the channels, shape (R, C).
    """
    return fluctuation * reader.square().sum(dim=0)


def wifn(norm: torch.Tensor, reader: torch.Tensor) -> torch.Tensor:
    """Weighted input feature norm: ‖x_j‖ times the mean of |W_ij| over outputs, shape (C,)."""
    return norm * reader.abs().mean(dim=0)


def standardised(metric: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    """(metric − mean) / standard deviation, Bessel-corrected, both over the channels ``among``; shape (C,).

    Where the metric does not vary all channels are as important as each other: zeros.
    """
    base = metric if among is None else metric[among]
    spread = base.std() if len(base) > 1 else torch.zeros(())
    return torch.zeros_like(metric) if spread == 0 else (metric - base.mean()) / spread  # a spread that is no number is passed on


def published_unit_costs(geometry: Geometry) -> dict[Space, float]:
    """What a unit counts for where both spaces compete: 1 per FFN channel, and per KV group its parameters in FFN channels, truncated.

    With g query heads per group that is ⌊head_dim · (2g + 2) / 3⌋ in a gated model; the released code has 170, which
    is 512/3 truncated: one head of 128 (g = 1).
    """
    cost = {space: geometry.unit_parameters(sublayer) for space, sublayer in SUBLAYERS.items()}
    return {Space.FFN: 1.0, Space.KV_GROUP: float(cost[Space.KV_GROUP] // cost[Space.FFN])}


class FLAPOptions(Slice):
    """Options of FLAP."""

    metric: Literal["WIFV", "WIFN", "IFV"] = Field("WIFV", description="fluctuation × weights, norm × weights, or fluctuation alone")
    fluctuation: Literal["published", "variance"] = Field("published", description="the released code's statistic, or the sample variance")
    structure: Literal["AL-AM", "AL-MM", "UL-UM", "UL-MM"] = Field(
        "AL-AM", description="of a pooled budget: blocks Adaptive or Uniform - modules Adaptive, Manual or Uniform"
    )
    remove_heads: int | None = Field(None, ge=0, description="KV groups that go in the whole model; for AL-MM and UL-MM")
    unit_costs: Literal["published", "parameters"] = Field("published", description="what a KV group counts for in FFN channels, for AL-AM")

    @model_validator(mode="after")
    def _heads_where_manual(self) -> FLAPOptions:
        if (self.remove_heads is not None) != self.structure.endswith("MM"):
            raise ValueError("AL-MM and UL-MM need remove_heads, and the others have no use for it")
        return self


class FLAP:
    """FFN channels and KV groups by how much their contribution fluctuates."""

    name = "flap"
    spaces = frozenset(SUBLAYERS)
    allocation = "global"
    options = FLAPOptions

    def check(self, step: ResolvedStep) -> None:
        """What the options alone cannot show to be wrong.

        Raises:
            TrimlineError: a structure or a rounding that only a pooled budget has, or one that needs both spaces.
        """
        structure = options_of(step, FLAPOptions).structure
        if step.recipe.budget and (structure != "AL-AM" or step.recipe.rounding == "published"):
            raise TrimlineError("FLAP's structures and its own rounding are of a budget for both spaces together.",
                                "Write pooled: {remove: ...} in place of budget, or leave structure and rounding out.")  # fmt: skip
        if structure.endswith("MM") and step.recipe.target:
            raise TrimlineError(f"FLAP's {structure} states by number which heads go, and a target leaves that open.",
                                "Use structure AL-AM or UL-UM.")  # fmt: skip
        if structure.endswith("MM") and step.recipe.shots > 1:
            raise TrimlineError(f"FLAP's {structure} removes its number of heads at once, not in {step.recipe.shots} shots.",
                                "Leave shots out, or use structure AL-AM or UL-UM.")  # fmt: skip
        if structure.endswith("MM") and set(step.spaces) != set(SUBLAYERS):
            raise TrimlineError(f"FLAP's {structure} splits a budget between ffn and kv_group.", "Name both in pooled.spaces.")

    def needs(self, step: ResolvedStep) -> Needs:
        """Squared inputs and fluctuation of the readers."""
        points = frozenset(SUBLAYERS[space].point for space in step.spaces)
        return Needs(squares=points) if options_of(step, FLAPOptions).metric == "WIFN" else Needs(fluctuation=points)

    def score(self, view: BlockView, space: Space, step: ResolvedStep) -> torch.Tensor:
        """Per FFN channel or KV group: mean over its channels of the standardised metric, or the metric's sum where blocks are uniform.

        The output projection's metric is squared before that, as in the released code; the FFN's is not.
        """
        sublayer, options = SUBLAYERS[space], options_of(step, FLAPOptions)
        reader = view.geometry.family.reader(sublayer)
        weight = view.weight(reader.name)
        metric = channel_metric(options, view.reader(sublayer), view.statistics.sequences, weight).double()
        width = view.geometry.unit_width(reader.columns)
        if sublayer is Sublayer.ATTENTION:
            metric = metric.square()
        if options.structure.startswith("UL"):
            return metric.view(-1, width).sum(dim=1)
        among = view.channels_left(sublayer).to(metric.device)
        return standardised(metric, among).view(-1, width).mean(dim=1)

    def is_even(self, step: ResolvedStep) -> bool:
        """Whether a pooled step leaves blocks that were alike, alike."""
        return options_of(step, FLAPOptions).structure.startswith("UL")

    def pooled_counts(self, geometry: Geometry, step: ResolvedStep, scores: Scores) -> tuple[Counts, dict[str, Any]]:
        """How many units stay, by the step's structure."""
        options = options_of(step, FLAPOptions)
        if options.structure == "AL-AM":
            costs = published_unit_costs(geometry) if options.unit_costs == "published" else None
            return pooled_allocation(geometry, step.recipe, scores, costs)
        rule = {"AL-MM": _adaptive_manual, "UL-MM": _uniform_manual, "UL-UM": _uniform}[options.structure]
        pool = step.recipe.pooled
        assert pool is not None
        counts = rounded_counts(rule(geometry, pool, scores, options.remove_heads or 0), step.recipe, scores, even=self.is_even(step))
        return counts, {"structure": options.structure, "kept": kept_facts(counts)}


def channel_metric(options: FLAPOptions, inputs: InputStatistics, sequences: int, weight: torch.Tensor) -> torch.Tensor:
    """The metric per input channel of a reader, shape (C,), fp32, on the statistics' device."""
    weight = weight.to(inputs.squares.device)
    if options.metric == "WIFN":
        return wifn(activation_norm(inputs.squares, sequences), weight)
    assert inputs.fluctuation is not None
    fluctuation = inputs.fluctuation.published if options.fluctuation == "published" else inputs.fluctuation.variance
    return fluctuation if options.metric == "IFV" else wifv(fluctuation, weight)


def _adaptive_manual(geometry: Geometry, pool: Pool, scores: Scores, heads: int) -> Counts:
    """``heads`` KV groups with the lowest scores of all blocks, and as many FFN channels as the rest of the budget is."""
    sizes = unit_sizes(geometry, pool)
    channels = _channels_to_remove(pool.remove * whole_of(geometry, pool), heads, sizes)
    gone = {Space.KV_GROUP: heads, Space.FFN: channels}
    return above(scores, {space: _lowest(by_block, gone[space], space) for space, by_block in scores.items()})


def _uniform_manual(geometry: Geometry, pool: Pool, scores: Scores, heads: int) -> Counts:
    """``heads`` / blocks KV groups of every block, and as many FFN channels as the rest of its budget is."""
    sizes, each = unit_sizes(geometry, pool), heads // len(geometry.blocks)
    counts: Counts = {}
    for number, block in enumerate(scores[Space.FFN]):
        shape = geometry.blocks[number]
        size = whole_of(geometry.with_blocks((shape,)), pool)
        gone = {Space.KV_GROUP: each, Space.FFN: _channels_to_remove(pool.remove * size, each, sizes)}
        for space in scores:
            counts[IndexSet(space, block)] = _left(shape.units(SUBLAYERS[space]), gone[space], space)
    return counts


def _uniform(geometry: Geometry, pool: Pool, scores: Scores, heads: int) -> Counts:
    """The same fraction of every space of every block, rounded down."""
    return {
        IndexSet(space, block): len(score) - math.floor(pool.remove * len(score) + SLACK)
        for space, by_block in scores.items()
        for block, score in by_block.items()
    }


def _channels_to_remove(budget: float, heads: int, sizes: dict[Space, float]) -> int:
    """FFN channels that make up what the heads leave of a budget, rounded down.

    Raises:
        TrimlineError: the heads are more than the budget.
    """
    left = budget - heads * sizes[Space.KV_GROUP]
    if left < 0:
        most = math.floor(budget / sizes[Space.KV_GROUP] + SLACK)
        raise TrimlineError(f"Removing {heads} KV groups alone is more than the budget.", f"Set remove_heads to {most} or less there.")
    return math.floor(left / sizes[Space.FFN] + SLACK)


def _lowest(by_block: dict[int, torch.Tensor], count: int, space: Space) -> float:
    """The score at and below which units go, so that ``count`` of them do."""
    flat = torch.cat(list(by_block.values())).double()
    _left(len(flat), count, space)
    return flat.sort().values[count - 1].item() if count else -math.inf


def _left(width: int, gone: int, space: Space) -> int:
    if gone > width:
        raise TrimlineError(f"The budget removes {gone} units of {space} where there are {width}.", "Change remove_heads, or ask for less.")
    return width - gone
