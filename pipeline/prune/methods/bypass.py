"""Bypass Back-propagation (arXiv 2406.10576): masks drawn from probabilities, which a policy gradient learns from forward passes alone.

Every unit has a probability s of staying. In each step K masks m are drawn for all blocks, and each gives a loss L on the same tokens.
With δ a moving average of the losses (equation 5 and the released code, commit 3ee3b77),

    s ← s − η Σ_k (L_k − δ) (m_k − s) / √(s (1 − s)) / (K − 1),

and s is brought back to where its sum is the budget: s − v, clipped to [0, 1], per space over all blocks. In the end the most probable
units stay. The code divides by √(s (1 − s)) where the gradient of E L has s (1 − s); the default is the code. The start is a sigmoid of
Wanda-sp's score, standardised within its block.

Ours: the score at the start comes from the dense model, where theirs is measured block by block on what the pruned blocks before give;
among equally probable units it decides; widths in tiles, and at least one in every block; least squares beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from pydantic import Field

from pipeline.architecture.names import units_name
from pipeline.architecture.spaces import SUBLAYERS, IndexSet
from pipeline.calibrate.measurements import Measured, Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import activation_norm
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.slices import Count, Slice
from pipeline.live.blocks import blocks_of
from pipeline.plan.plan import Step
from pipeline.prune.allocation.allocate import allocate, keep_best
from pipeline.prune.allocation.budget import removed_fraction
from pipeline.prune.compensation.readers import compensate
from pipeline.prune.methods.method import options_of
from pipeline.prune.methods.wanda import unit_score
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.step import ResolvedStep

EPSILON = 1e-7  # beside probabilities of 0 and 1, as released
TIE = 1e-6  # what the score at the start may add to a probability
Probabilities = dict[IndexSet, torch.Tensor]  # of every sublayer's units that are left, fp64


class BypassOptions(Slice):
    """Options of bypass; the defaults are those of the authors' scripts."""

    steps: Count = Field(15_000, description="of the policy gradient")
    windows: Count = Field(8, description="calibration windows of a step; theirs have 128 tokens")
    samples: int = Field(2, ge=2, le=1000, description="K: masks that are drawn in a step")
    learning_rate: float = Field(0.002, gt=0.0, le=10.0, description="at the start; it falls to 0 along a cosine")
    average: Count = Field(5, description="steps that the moving average of the losses looks back")
    gradient: Literal["released", "exact"] = Field("released", description="divided by √(s(1 − s)) as in the code, or by s(1 − s)")
    start: Literal["metric", "even"] = Field("metric", description="of the probabilities: by Wanda-sp's score, or all alike")
    seed: int = 0


def started(metric: torch.Tensor, keep: float) -> torch.Tensor:
    """Probabilities of a block's units: the sigmoid of their standardised score, moved so that the mean is ``keep``, clipped to [0, 1]."""
    metric = metric.double()
    spread = metric.std() if len(metric) > 1 else metric.new_tensor(0.0)
    found = torch.sigmoid((metric - metric.mean()) / (spread + 1e-8))
    return (found + keep - found.mean()).clamp(0, 1)


def projected(probabilities: torch.Tensor, total: float) -> torch.Tensor:
    """The nearest with a sum of at most ``total``: clip(s − v, 0, 1) with the least v ≥ 0 for that; shape and dtype stay."""

    def reached(shift: float) -> torch.Tensor:
        return (probabilities - shift).clamp(0, 1)

    if reached(0.0).sum() <= total:
        return reached(0.0)
    low, high = 0.0, float(probabilities.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle).sum() > total else (low, middle)
    return reached(high)


def policy_gradient(
    losses: torch.Tensor, masks: torch.Tensor, probabilities: torch.Tensor, baseline: float, released: bool = True
) -> torch.Tensor:
    """Σ_k (L_k − δ)(m_k − s) / √(s(1 − s)) / (K − 1), or with s(1 − s); shape (n,).

    Args:
        losses: L, shape (K,).
        masks: m, zeros and ones, shape (K, n).
        probabilities: s, shape (n,).
        baseline: δ.
        released: divides by the root.
    """
    spread = (probabilities + EPSILON) * (1 - probabilities + EPSILON)
    directions = (masks - probabilities) / (spread.sqrt() if released else spread)
    return ((losses - baseline)[:, None] * directions).sum(0) / (len(losses) - 1)


class Bypass:
    """FFN channels and KV groups by learned probabilities."""

    name = "bypass"
    spaces = frozenset(SUBLAYERS)
    options = BypassOptions

    def check(self, step: ResolvedStep) -> None:
        """Raises TrimlineError for what the learning does not do: pools, targets, sizes that are given, several shots."""
        recipe = step.recipe
        if not recipe.budget or recipe.shots > 1 or any(budget.remove is None for budget in recipe.budget.values()):
            raise TrimlineError(
                "The method bypass learns which share of each space goes, in one shot.",
                "Write budget: {ffn: {remove: 0.3}}, without shots.",
            )

    def run(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, events: Events) -> Iterator[tuple[Step, Scores]]:
        """Learns, and keeps the most probable units; one entry."""
        points = frozenset(SUBLAYERS[space].point for space in step.spaces)
        solving = step.recipe.compensation == "least_squares"
        needs = Needs(squares=points, gram=points if solving else frozenset())
        seen = dict(sweep(model.model, model.geometry.family, windows, needs, events))
        metrics = _metrics(model, step, seen)
        learning = Learning(model, windows, step, metrics)
        learning.run(events)
        scores: Scores = {space: {} for space in step.spaces}
        for among, probability in learning.probabilities.items():
            order = metrics[among].argsort(stable=True).argsort().double() / max(1, len(probability))
            scores[among.space][among.block] = (probability + TIE * order).float()
        kept = _remove(model, step, scores, seen)
        facts = {"tokens": windows.numel(), "steps": learning.done, "losses": [round(loss, 6) for loss in learning.losses]}
        title = f"bypass on {', '.join(space.value for space in step.spaces)}"
        yield Step(title, step.record, kept, facts), scores


class Learning:
    """Probabilities and how they are learned.

    Attributes:
        probabilities: of every sublayer's units.
        losses: mean of the masks' losses, at about a hundred steps from the first to the last.
        done: steps in which some loss was a number.
    """

    def __init__(self, model: ShrinkingModel, windows: torch.Tensor, step: ResolvedStep, metrics: Mapping[IndexSet, torch.Tensor]) -> None:
        self.model, self.windows, self.options = model, windows, options_of(step, BypassOptions)
        keep = {space: 1 - removed_fraction(budget, space, model.current) for space, budget in step.recipe.budget.items()}
        self.totals = {space: keep[space] * sum(len(m) for among, m in metrics.items() if among.space is space) for space in keep}
        self.probabilities: Probabilities = {
            among: started(metric, keep[among.space])
            if self.options.start == "metric"
            else torch.full((len(metric),), keep[among.space]).double()
            for among, metric in metrics.items()
        }
        self.losses: list[float] = []
        self.done, self._baseline = 0, math.nan
        self._draw = torch.Generator().manual_seed(self.options.seed)

    def run(self, events: Events) -> None:
        """All steps.

        Raises:
            TrimlineError: no mask at all gave a loss that is a number.
        """
        self._project()
        every = max(1, self.options.steps // 100)
        with events.progress("learning masks from forward passes", self.options.steps) as advance:
            for number in range(self.options.steps):
                mean = self._step(0.5 * self.options.learning_rate * (1 + math.cos(math.pi * number / self.options.steps)))
                if number % every == 0 or number == self.options.steps - 1:
                    self.losses.append(mean)
                advance(1)
        if not self.done:
            self.model.demand_finite([torch.tensor(self.losses)], "The losses of all masks")
        self.losses = [loss for loss in self.losses if math.isfinite(loss)]

    def _step(self, rate: float) -> float:
        """Draws masks, judges them and moves; the mean loss. What is no number is left out, as released."""
        batch = self.windows[torch.randint(len(self.windows), (self.options.windows,), generator=self._draw)]
        masks = [self._drawn() for _ in range(self.options.samples)]
        losses = torch.tensor([self._loss(mask, batch) for mask in masks], dtype=torch.float64)
        valid = losses.isfinite()
        if not valid.any():
            return math.nan
        mean = losses[valid].mean().item()
        self._baseline = mean if not self.done else self._baseline + (mean - self._baseline) / self.options.average
        for among, probability in self.probabilities.items():
            drawn = torch.stack([mask[among] for mask in masks])[valid]
            pull = torch.zeros_like(probability)
            if len(drawn) > 1:
                pull = policy_gradient(losses[valid], drawn, probability, self._baseline, self.options.gradient == "released")
            self.probabilities[among] = probability - rate * pull
        self._project()
        self.done += 1
        return mean

    def _drawn(self) -> Probabilities:
        return {
            among: (torch.rand(len(one), generator=self._draw, dtype=torch.float64) < one).double()
            for among, one in self.probabilities.items()
        }

    def _project(self) -> None:
        for space, total in self.totals.items():
            keys = [among for among in self.probabilities if among.space is space]
            found = projected(torch.cat([self.probabilities[among] for among in keys]), total)
            for among, part in zip(keys, found.split([len(self.probabilities[among]) for among in keys]), strict=True):
                self.probabilities[among] = part

    @torch.inference_mode()
    def _loss(self, masks: Probabilities, batch: torch.Tensor) -> float:
        """Mean cross-entropy of the next token, nats."""
        with masked(self.model, masks):
            device = next(self.model.model.parameters()).device
            logits = self.model.model(input_ids=batch.to(device), use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten().to(logits.device)).item()


@contextmanager
def masked(model: ShrinkingModel, masks: Mapping[IndexSet, torch.Tensor]) -> Iterator[None]:
    """The live model with readers that read their inputs times a mask of the units that are left, (units,) each; a sublayer of which
    nothing stays writes nothing, not even its bias."""
    family, blocks = model.geometry.family, blocks_of(model.model, model.geometry.family)
    with ExitStack() as hooks:
        for (space, block), mask in masks.items():
            reader = family.reader(SUBLAYERS[space])
            width = model.geometry.unit_width(reader.columns)
            full = torch.zeros(model.geometry.blocks[block].units(SUBLAYERS[space]), dtype=mask.dtype)
            full[list(model.selection.units(SUBLAYERS[space])[block])] = mask
            live, columns = blocks[block].get_submodule(reader.name), full.repeat_interleave(width)
            handle = live.register_forward_pre_hook(lambda _, given, columns=columns: (given[0] * columns.to(given[0]),))
            hooks.callback(handle.remove)
            if not mask.any():
                hooks.callback(live.register_forward_hook(lambda _, __, output: torch.zeros_like(output)).remove)
        yield


def _metrics(model: ShrinkingModel, step: ResolvedStep, seen: Measured) -> dict[IndexSet, torch.Tensor]:
    """Wanda-sp's score of the units that are left, per sublayer."""
    found = {}
    for space in step.spaces:
        sublayer = SUBLAYERS[space]
        reader = model.geometry.family.reader(sublayer)
        for block in model.selection.blocks:
            if left := model.selection.units(sublayer)[block]:
                norm = activation_norm(seen[block].inputs[sublayer.point].squares, seen[block].sequences).cpu()
                score = unit_score(model.weight(block, reader.name), norm, model.geometry.unit_width(reader.columns))
                found[IndexSet(space, block)] = score[list(left)]
    return found


def _remove(model: ShrinkingModel, step: ResolvedStep, scores: Scores, seen: Measured) -> dict[str, tuple[int, ...]]:
    """Keeps the most probable of all blocks' units, whole tiles of FFN channels."""
    kept: dict[str, tuple[int, ...]] = {}
    current = model.current
    for space, by_block in scores.items():
        sublayer = SUBLAYERS[space]
        everywhere = [by_block.get(block, torch.zeros(0)) for block in model.selection.blocks]
        counts = allocate(step.recipe, space, "raw", current, everywhere, None).counts
        for block, count, score in zip(model.selection.blocks, counts, everywhere, strict=True):
            left = model.selection.units(sublayer)[block]
            units = tuple(left[place] for place in keep_best(score, count).tolist())
            if len(units) < len(left):
                compensate(model, sublayer, block, units, seen[block], step.recipe)
            model.keep_units(sublayer, block, units)
            kept[units_name(space, block)] = units
    return kept
