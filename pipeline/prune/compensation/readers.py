"""What makes up for units about to go, written into the projection that reads them."""

from __future__ import annotations

import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.spaces import channels
from pipeline.calibrate.statistics import BlockStatistics
from pipeline.prune.compensation.bias import bias_shift
from pipeline.prune.compensation.least_squares import least_squares
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneStep


def compensate(
    model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics, step: PruneStep
) -> None:
    """Updates the reader of a sublayer that keeps ``units`` of those left now, as the step's compensation says.

    Args:
        model: with all units still there.
        sublayer, block: whose.
        units: what stays, ascending original numbers; fewer than are left.
        seen: the block's statistics.
        step: which compensation.
    """
    if step.compensation == "bias":
        compensate_by_bias(model, sublayer, block, units, seen)
    elif step.compensation == "least_squares" and units:
        compensate_by_weights(model, sublayer, block, units, seen, step.damping)


def compensate_by_weights(
    model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics, damping: float
) -> None:
    """Least squares over the columns that are left now, of which ``units`` stay."""
    stay = channels(units, model.geometry.unit_width(model.geometry.family.reader(sublayer).columns))
    model.update_reader(sublayer, block, stay, *solved_reader(model, sublayer, block, units, seen, damping))


def solved_reader(
    model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics, damping: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The columns of ``units`` of a sublayer's reader, solved for anew, shape (R, K), fp32, and what to add to its bias, or None."""
    reader = model.geometry.family.reader(sublayer)
    width = model.geometry.unit_width(reader.columns)
    left = channels(model.selection.units(sublayer)[block], width)
    statistics = seen.inputs[sublayer.point]
    gram = statistics.gram()
    device = gram.device
    columns = left.to(device)
    return least_squares(
        model.weight(block, reader.name)[:, left].to(device),
        gram[columns][:, columns],
        torch.isin(left, channels(units, width)).nonzero().flatten().to(device),
        damping,
        total=statistics.total[columns] if model.has_bias(reader) else None,
        tokens=seen.tokens,
    )


def shifted_bias(model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics) -> torch.Tensor:
    """What the units that go (all but ``units``, of those left now) gave on average through the reader, shape (R,)."""
    reader = model.geometry.family.reader(sublayer)
    width = model.geometry.unit_width(reader.columns)
    left, stay = channels(model.selection.units(sublayer)[block], width), channels(units, width)
    mean = seen.inputs[sublayer.point].total.cpu() / seen.tokens
    return bias_shift(model.weight(block, reader.name), mean, left[~torch.isin(left, stay)])


def compensate_by_bias(model: ShrinkingModel, sublayer: Sublayer, block: int, units: tuple[int, ...], seen: BlockStatistics) -> None:
    """The reader's bias takes up what the units that go (all but ``units``, of those left now) gave on average.

    A sublayer that loses all of them is taken out, bias and all. What it gave on average goes to a neighbour, where that is the
    same (``ShrinkingModel.bearer``); else it is lost.
    """
    family = model.geometry.family
    reader = family.reader(sublayer)
    shift = shifted_bias(model, sublayer, block, units, seen)
    if units:
        model.add_bias(block, reader.name, shift)
    elif (bearer := model.bearer(block, sublayer)) is not None:
        own = model.bias(block, reader.name)
        constant = model.multiplier(sublayer) / model.multiplier(bearer[1]) * (shift if own is None else shift + own)
        model.add_bias(bearer[0], family.reader(bearer[1]).name, constant)
