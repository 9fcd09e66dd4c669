"""Statistics of parts of the calibration windows, merged into what one pass over all of them gives.

A statistic merges where it is a sum over tokens or sequences, or a list of sequences. Two are neither, and are refused:

- FLAP's fluctuation: each sequence is compared with the mean of those before it, so a part cannot know its share.
- GBLM-Pruner's sum of |g| as published: it is rounded to fp16 after every sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeVar

import torch

from pipeline.calibrate.needs import Needs
from pipeline.calibrate.routed import RoutedStatistics
from pipeline.calibrate.statistics import BlockGradients, BlockStatistics, InputStatistics
from pipeline.common.errors import TrimlineError

Key = TypeVar("Key")


def why_not_merged(needs: Needs) -> str:
    """What of these statistics no merge can give; empty where all of them merge."""
    if needs.fluctuation:
        return "FLAP's fluctuation follows the sequences in their order"
    if needs.gradients and needs.gradients.half:
        return "the published GBLM-Pruner rounds its sum after every sequence"
    return ""


def demand_merged(needs: Needs) -> None:
    """Refuses statistics that do not merge.

    Raises:
        TrimlineError: says which.
    """
    if why := why_not_merged(needs):
        raise TrimlineError(f"The statistics of parts of the text do not merge: {why}.", "Measure it in one part.")


def merge_statistics(parts: Sequence[BlockStatistics]) -> BlockStatistics:
    """Statistics of one block over all windows, from those over parts of them, given in the windows' order.

    Equal to one pass up to the rounding of fp32 sums. The same parts give the same bits.

    Raises:
        TrimlineError: they hold what does not merge.
        ValueError: no parts, or parts that hold different things.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    if any(inputs.fluctuation is not None for part in parts for inputs in part.inputs.values()):
        raise TrimlineError("The statistics of parts of the text do not merge: FLAP's fluctuation follows the sequences in their order.")
    gradients = [part.gradients for part in parts if part.gradients is not None]
    routed = [part.routed for part in parts if part.routed is not None]
    return BlockStatistics(
        tokens=sum(part.tokens for part in parts),
        sequences=sum(part.sequences for part in parts),
        distance=sum(part.distance for part in parts),
        influence=sum(part.influence for part in parts),
        inputs={point: _merge_inputs(list(inputs)) for point, inputs in _aligned([part.inputs for part in parts]).items()},
        gradients=merge_gradients(gradients) if gradients else None,
        routed=reduce(RoutedStatistics.plus, routed) if routed else None,
    )


def merge_gradients(parts: Sequence[BlockGradients]) -> BlockGradients:
    """Gradients of one block over all windows; ``masks`` has a row per sequence, so its rows follow each other.

    Raises:
        ValueError: no parts, or parts that hold different things.
    """
    if not parts:
        raise ValueError("there is nothing to merge")
    return BlockGradients(
        tokens=sum(part.tokens for part in parts),
        sequences=sum(part.sequences for part in parts),
        absolute=_sums([part.absolute for part in parts]),
        squares=_sums([part.squares for part in parts]),
        outputs=_sums([part.outputs for part in parts]),
        inputs=_sums([part.inputs for part in parts]),
        totals=_sums([part.totals for part in parts]),
        masks={sublayer: torch.cat(list(rows)) for sublayer, rows in _aligned([part.masks for part in parts]).items()},
        experts={name: torch.cat(list(rows)) for name, rows in _aligned([part.experts for part in parts]).items()},
    )


def _merge_inputs(parts: Sequence[InputStatistics]) -> InputStatistics:
    uppers = [part.upper for part in parts if part.upper is not None]
    if len(uppers) not in (0, len(parts)):
        raise ValueError("some parts hold Gram matrices and others do not")
    return InputStatistics(
        squares=_sum([part.squares for part in parts]),
        total=_sum([part.total for part in parts]),
        upper=_sum(uppers) if uppers else None,
    )


def _sums(parts: Sequence[Mapping[Key, torch.Tensor]]) -> dict[Key, torch.Tensor]:
    return {key: _sum(tensors) for key, tensors in _aligned(parts).items()}


def _sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """In the order given: sums of floats depend on it."""
    return reduce(torch.add, tensors)


def _aligned(parts: Sequence[Mapping[Key, torch.Tensor]] | Sequence[Mapping[Key, InputStatistics]]) -> dict[Key, list]:
    """Values of all parts by key."""
    if any(set(part) != set(parts[0]) for part in parts):
        raise ValueError("the parts hold different statistics")
    return {key: [part[key] for part in parts] for key in parts[0]}
