"""Single weights, block by block: what is pruned in one block is what the blocks after it are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipeline.architecture.families import Linear
from pipeline.architecture.spaces import Space
from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep
from pipeline.calibrate.measurements import Measurements, Scores
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.plan.plan import Step
from pipeline.prune.methods.method import LayerView, WeightMethod
from pipeline.prune.model.masks import Pattern
from pipeline.prune.model.remaining import check_widths, live_indices, live_linears, store
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.shots import shots_of
from pipeline.prune.step import ResolvedStep
from pipeline.tensors.saved_states import saved_states


@dataclass(frozen=True, kw_only=True)
class WeightStep(ResolvedStep):
    """Single weights go, shot by shot.

    Attributes:
        method: prunes one projection.
    """

    method: WeightMethod

    @property
    def reads_text(self) -> bool:
        return bool(self.method.weight_needs(self))

    def run(
        self, model: ShrinkingModel, windows: torch.Tensor, events: Events, measurements: Measurements | None = None
    ) -> Iterator[tuple[Step, Scores]]:
        for shot in shots_of(self, model):
            yield sparsify(model, windows, shot, events), {}


def sparsify(model: ShrinkingModel, windows: torch.Tensor, step: WeightStep, events: Events) -> Step:
    """One round over all blocks: measure, prune every projection, run the block again.

    Rows and columns that are gone already take no part: fractions and groups are of what is left.

    Raises:
        TrimlineError: a projection's inputs are no multiple of the pattern's group, the pattern comes in several shots,
            or something is not finite.
    """
    pattern, remove = Pattern.parse(step.recipe.pattern), step.recipe.budget[Space.WEIGHT].remove
    assert remove is not None
    if pattern.fraction is not None and abs(remove - pattern.fraction) > 1e-9:
        raise TrimlineError(f"The pattern {pattern} cannot come in several shots: each would be {pattern} already.", "Use one shot.")
    check_widths(model, pattern)
    needs = step.method.weight_needs(step)
    zeros = total = 0
    with weight_gradients(model, windows, needs.gradients, events) as gradients:
        for block, seen in _measured(model, windows, needs, events):
            if block not in model.selection.blocks:
                continue
            seen.gradients = gradients(block)
            for linear in live_linears(model, block):
                pruned = step.method.prune(layer_view(model, block, linear, seen), pattern, remove, step)
                store(model, block, linear, pruned, step.recipe.pattern)
                zeros, total = zeros + int((pruned == 0).sum()), total + pruned.numel()
    facts = {"tokens": windows.numel() if needs else 0, "pattern": step.recipe.pattern, "zero fraction": zeros / max(total, 1)}
    return Step(f"{step.recipe.method}, {step.recipe.pattern}", step.record, {}, facts)


def _measured(model: ShrinkingModel, windows: torch.Tensor, needs: Needs, events: Events) -> Iterator[tuple[int, BlockStatistics]]:
    """Block after block; no block runs where nothing is collected of its inputs."""
    if needs.forward:
        return sweep(model.model, model.geometry.family, windows, needs, events, sequential=True)
    return ((block, BlockStatistics(windows.numel(), len(windows))) for block in range(len(model.geometry.blocks)))


@contextmanager
def weight_gradients(
    model: ShrinkingModel, windows: torch.Tensor, needs: GradientNeeds | None, events: Events
) -> Iterator[Callable[[int], BlockGradients | None]]:
    """Hands out, once per block and in any order, the weight gradients of the model as it is on entry; None without needs.

    A sweep backwards ends where the sweep that reads them starts, and together they are twice as large as the weights
    in fp32: beyond a limit they wait in files.
    """
    waiting: dict[int, tuple[list[str], BlockGradients]] = {}
    family, limit = model.geometry.family, model.waiting_bytes
    with saved_states(limit) as saved:
        for block, found in gradient_sweep(model.model, family, windows, needs, events, limit) if needs else ():
            names = sorted(found.absolute)
            for place, name in enumerate(names):
                saved.put((block, 2 * place), found.absolute.pop(name))
                saved.put((block, 2 * place + 1), found.squares.pop(name))
            waiting[block] = names, found

        def take(block: int) -> BlockGradients | None:
            if block not in waiting:
                return None
            names, found = waiting.pop(block)
            for place, name in enumerate(names):
                found.absolute[name], found.squares[name] = saved.take((block, 2 * place)), saved.take((block, 2 * place + 1))
            return found

        yield take


def layer_view(model: ShrinkingModel, block: int, linear: Linear, seen: BlockStatistics) -> LayerView:
    """A projection's rows and columns that are left, with the statistics of those inputs."""
    rows, columns = live_indices(model, block, linear)
    inputs, gradients = seen.inputs.get(linear.point), seen.gradients
    # Blocks of a model on several devices are measured where they are.
    device = inputs.squares.device if inputs else next(model.model.parameters()).device

    def left(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[rows][:, columns].to(device)

    return LayerView(
        linear=linear,
        block=block,
        weight=model.weight(block, linear.name)[rows][:, columns].to(device),
        statistics=seen,
        inputs=inputs.restricted(columns) if inputs else None,
        absolute=left(gradients.absolute.get(linear.name)) if gradients else None,
        squares=left(gradients.squares.get(linear.name)) if gradients else None,
    )
