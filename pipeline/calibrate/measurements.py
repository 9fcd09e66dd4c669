"""What was measured, on disk, so that another budget for the same step measures nothing again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.architecture.families import Point
from pipeline.architecture.names import first_scores_name, first_scores_named, routed_name, routed_named, statistic_name, statistic_named
from pipeline.architecture.spaces import IndexSet, Space
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.routed import RoutedStatistics
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.common.files import read_json, write_json
from pipeline.tensors.tensorfile import save_tensors

TENSORS, NUMBERS = "measured.safetensors", "measured.json"
CHOSEN = "chosen"  # beside the sums of ``RoutedStatistics``
Measured = dict[int, BlockStatistics]  # by original block number
Scores = dict[Space, dict[int, torch.Tensor]]  # per space, original block number to a score per unit that was left


@dataclass(frozen=True)
class Measurements:
    """Tensors and JSON-compatible numbers by name; whoever measured them gives the names their meaning."""

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Same measurement, same bytes."""
        save_tensors(folder / TENSORS, self.tensors)
        write_json(folder / NUMBERS, self.numbers)

    @classmethod
    def read(cls, folder: Path) -> Measurements:
        """What ``write`` wrote."""
        return cls(load_file(folder / TENSORS), read_json(folder / NUMBERS))


def measurements_of(scores: Scores, measured: Measured) -> Measurements:
    """Scores per unit, and the statistics that sizes and compensations are decided on; gradients are not among them."""
    tensors = {first_scores_name(IndexSet(space, block)): score for space, by_block in scores.items() for block, score in by_block.items()}
    numbers: dict[str, Any] = {}
    for block, seen in measured.items():
        points: dict[str, Any] = {}
        if seen.routed is not None:
            tensors |= {routed_name(block, name): tensor for name, tensor in vars(seen.routed).items()}
        if seen.chosen is not None:
            tensors[routed_name(block, CHOSEN)] = seen.chosen
        for point, inputs in seen.inputs.items():
            tensors |= {statistic_name(block, point, name): tensor for name, tensor in _tensors(inputs).items()}
            followed = inputs.fluctuation
            points[point.value] = followed and {"sequences": followed.sequences, "tokens": followed.tokens}
        numbers[str(block)] = {
            "tokens": seen.tokens,
            "sequences": seen.sequences,
            "distance": seen.distance,
            "influence": seen.influence,
            "inputs": points,
        }
    return Measurements(tensors, numbers)


def scores_of(measurements: Measurements) -> tuple[Scores, Measured]:
    """What ``measurements_of`` was given."""
    scores: Scores = {}
    inputs: dict[tuple[int, Point], dict[str, torch.Tensor]] = {}
    routed: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in measurements.tensors.items():
        if (units := first_scores_named(name)) is not None:
            scores.setdefault(units.space, {})[units.block] = tensor
        elif (of_routed := routed_named(name)) is not None:
            routed.setdefault(of_routed[0], {})[of_routed[1]] = tensor
        else:
            block, point, statistic = statistic_named(name)
            inputs.setdefault((block, point), {})[statistic] = tensor
    numbers = sorted((int(block), found) for block, found in measurements.numbers.items())
    ordered = {space: dict(sorted(by_block.items())) for space, by_block in scores.items()}
    measured = {block: _block(block, found, inputs) for block, found in numbers}
    for block, tensors in routed.items():
        measured[block].chosen = tensors.pop(CHOSEN, None)
        measured[block].routed = RoutedStatistics(**tensors) if tensors else None
    return ordered, measured


def _tensors(inputs: InputStatistics) -> dict[str, torch.Tensor]:
    found = {"squares": inputs.squares, "total": inputs.total}
    if inputs.upper is not None:
        found["upper"] = inputs.upper
    if (followed := inputs.fluctuation) is not None:
        found |= {"mean": followed.mean, "between": followed.between, "centred": followed.centred}
    return found


def _block(block: int, numbers: Mapping[str, Any], tensors: Mapping[tuple[int, Point], Mapping[str, torch.Tensor]]) -> BlockStatistics:
    inputs = {Point(point): _inputs(tensors[block, Point(point)], counts) for point, counts in numbers["inputs"].items()}
    return BlockStatistics(numbers["tokens"], numbers["sequences"], numbers["distance"], numbers["influence"], inputs)


def _inputs(found: Mapping[str, torch.Tensor], counts: Mapping[str, int] | None) -> InputStatistics:
    followed = counts and Fluctuation(found["mean"], found["between"], found["centred"], counts["sequences"], counts["tokens"])
    return InputStatistics(found["squares"], found["total"], found.get("upper"), followed or None)
