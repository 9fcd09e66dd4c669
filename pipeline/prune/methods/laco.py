"""LaCo, layer collapse (arXiv 2402.11187): rear blocks are merged into an earlier one while the model's output stays alike.

The walk is that of section 3 and of the released notebooks. From the base block H − C downwards, C blocks are tried as one;
the last hidden states of a few windows (cosine of all states of a window as one vector, averaged over the windows) are
compared with the dense model's. Above the threshold T the merge stays and the base moves down by I, else by 1, until L.

Two things are called LaCo. Equation 1 adds the differences of the blocks that follow, θ_l + Σ_k (θ_{l+k} − θ_l), for all
tensors of the block. The released code subtracts from the sum it is adding to, so that only the last block's projections
are left, beside the norms of the base: θ_{l+m} (the project's issue 4). ``merge`` chooses; the default is the code, which
gave the published results. Four blocks of SmolLM2-135M as one, in six places, leave a cosine of −0.01 to 0.11 by the
equation, 0.29 to 0.95 by the code, and 0.59 to 0.97 where three are simply dropped.

Ours are the budget, which ends the walk, and that the threshold is found where none is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pydantic import Field

from pipeline.architecture.names import units_name
from pipeline.architecture.spaces import Space
from pipeline.calibrate.measurements import Scores
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.slices import Count, Slice
from pipeline.live.blocks import batches_of
from pipeline.plan.plan import Step
from pipeline.prune.allocation.allocate import blocks_to_keep
from pipeline.prune.allocation.targeted import Aim, layers_within
from pipeline.prune.methods.method import options_of
from pipeline.prune.model.collapsing import Collapsed, Rule, apply, check_alike, collapse, collapsed_live
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep

GRID = 0.01  # of the thresholds that are tried
BELOW_ALL = -101  # in units of it: every merge is alike enough


def state_similarity(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean over windows of the cosine of all their hidden states as one vector; (N, S, H) each. −1 where not finite."""
    cosine = torch.nn.functional.cosine_similarity(before.flatten(1).double(), after.flatten(1).double(), dim=1).mean().item()
    return cosine if math.isfinite(cosine) else -1.0


class LaCoOptions(Slice):
    """Options of LaCo, with the paper's letters."""

    merge: Rule = Field(
        "released", description="the last merged block's projections, as the released code gives, or the paper's equation 1"
    )
    layers: int = Field(4, ge=2, le=1000, description="C: blocks that become one")
    interval: Count = Field(2, description="I: blocks to move down after a merge")
    lowest: int = Field(1, ge=0, description="L: the lowest block that others are merged into")
    highest: Count | None = Field(None, description="H: the walk starts C blocks below this one; by default the last block")
    threshold: float | None = Field(
        None, ge=-1.0, le=1.0, description="T: least similarity; by default found, to a hundredth, so that the budget is met"
    )
    windows: Count = Field(5, description="calibration windows that the similarity is measured on")


@dataclass(frozen=True)
class CollapseWalk:
    """What one walk came to: the blocks, and their similarity to the dense model."""

    blocks: tuple[Collapsed, ...]
    similarity: float


def walk(
    blocks: tuple[Collapsed, ...],
    similarity: Callable[[tuple[Collapsed, ...]], float],
    threshold: float,
    keep: int,
    options: LaCoOptions,
    give_up: bool = False,
) -> CollapseWalk:
    """The published walk from the rear; it ends where ``keep`` blocks are left, and the last merge takes no more than that.

    With ``give_up`` it also ends, short of the budget, where the merges that there is still room for would not suffice: a
    trial costs a pass.
    """
    place = (len(blocks) - 1 if options.highest is None else options.highest) - options.layers
    reached = 1.0
    while place >= options.lowest and len(blocks) > keep:
        most = ((place - options.lowest) // options.interval + 1) * (options.layers - 1)
        if give_up and len(blocks) - most > keep:
            break
        end = place + 1 + min(options.layers - 1, len(blocks) - keep)
        tried = (*blocks[:place], collapse(blocks[place:end], options.merge), *blocks[end:])
        found = similarity(tried)
        if found > threshold:
            blocks, reached, place = tried, found, place - options.interval
        else:
            place -= 1
    return CollapseWalk(blocks, reached)


def search(
    blocks: tuple[Collapsed, ...], similarity: Callable[[tuple[Collapsed, ...]], float], keep: int, options: LaCoOptions
) -> tuple[CollapseWalk, float]:
    """The walk that meets the budget, and its threshold: the one given, or a multiple of ``GRID`` where the next one up does not.

    Bisection, since a walk costs a pass per trial. A lower threshold mostly merges more, but a merge that is accepted early
    can also spoil later ones: then there may be larger thresholds that meet the budget too.

    Raises:
        TrimlineError: no walk comes to so few blocks, or the one with the given threshold does not.
    """
    if options.threshold is not None:
        found = walk(blocks, similarity, options.threshold, keep, options, give_up=True)
        if len(found.blocks) > keep:
            raise TrimlineError(
                f"At threshold {options.threshold:g} the walk does not come to the {keep} blocks of the budget.",
                "Leave the threshold out, so that it is found, or ask for less.",
            )
        return found, options.threshold
    meets, misses = BELOW_ALL, round(1 / GRID)
    found = walk(blocks, similarity, meets * GRID, keep, options, give_up=True)
    if len(found.blocks) > keep:
        raise TrimlineError(
            f"The walk does not come to the {keep} blocks of the budget however low the threshold.",
            "Give more layers, a smaller interval, a lower lowest or a higher highest, or ask for less.",
        )
    while misses - meets > 1:
        middle = (meets + misses) // 2
        tried = walk(blocks, similarity, middle * GRID, keep, options, give_up=True)
        if len(tried.blocks) == keep:
            found, meets = tried, middle
        else:
            misses = middle
    return found, meets * GRID


class Similarity:
    """How alike the last hidden states are when blocks are collapsed; each arrangement is measured once."""

    def __init__(self, model: ShrinkingModel, windows: torch.Tensor, options: LaCoOptions) -> None:
        self.model, self.windows, self.rule = model, windows, options.merge
        self.dense = self._states()
        self.known: dict[tuple[Collapsed, ...], float] = {}
        model.demand_finite([self.dense], "The last hidden states")

    def __call__(self, blocks: tuple[Collapsed, ...]) -> float:
        if blocks not in self.known:
            with collapsed_live(self.model, blocks, self.rule):
                self.known[blocks] = state_similarity(self.dense, self._states())
        return self.known[blocks]

    @torch.no_grad()
    def _states(self) -> torch.Tensor:
        body = self.model.model.get_submodule(self.model.geometry.family.blocks.split(".")[0])
        device = next(body.parameters()).device
        found = [body(input_ids=batch.to(device), use_cache=False).last_hidden_state for batch in batches_of(self.windows)]
        return torch.cat(found).float().cpu()


class LaCo:
    """Whole blocks, merged into earlier ones."""

    name = "laco"
    spaces = frozenset({Space.LAYER})
    options = LaCoOptions

    def check(self, step: ResolvedStep) -> None:
        """Raises TrimlineError for a walk that has no block to start from, or for what this method does not do."""
        options = options_of(step, LaCoOptions)
        if step.recipe.pooled or step.recipe.shots > 1 or step.recipe.compensation != "none":
            raise TrimlineError("LaCo takes one budget of space layer, in one shot and without compensation.", "Leave the others out.")
        if options.highest is not None and options.highest - options.layers < options.lowest:
            raise TrimlineError(f"LaCo's walk from block {options.highest - options.layers} down to {options.lowest} is empty.",
                                "Give a higher highest, fewer layers or a lower lowest.")  # fmt: skip

    def run(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Iterator[tuple[Step, Scores]]:
        """Collapses blocks until the budget is met; one entry, without scores: blocks compete by trial."""
        options, left = options_of(step, LaCoOptions), model.selection.blocks
        check_alike(model)
        if step.recipe.target:
            keep = layers_within(Aim(step.recipe.target, model.selection, model.geometry, step.consumer))
        else:
            keep = blocks_to_keep(step.recipe.budget[Space.LAYER], model.current)
        if options.highest is not None and options.highest > len(left):
            raise TrimlineError(f"LaCo's highest is {options.highest}, and there are {len(left)} blocks.", f"Give at most {len(left)}.")
        windows = windows[: options.windows]
        events.note(f"collapsing {len(left)} blocks into {keep}, compared on {windows.numel():,} tokens")
        similarity = Similarity(model, windows, options)
        found, threshold = search(tuple(map(Collapsed.of, left)), similarity, keep, options)
        apply(model, found.blocks, options.merge)
        facts = {
            "tokens": windows.numel(),
            "layer": {"kept": keep},
            "threshold": round(threshold, 6),
            "similarity": found.similarity,
            "arrangements tried": len(similarity.known),
            "collapsed": {str(block.base): list(block.covers) for block in found.blocks if block.changed},
        }
        kept = {units_name(Space.LAYER): model.selection.blocks}
        yield Step("laco on layer", step.record, kept, facts), {}
