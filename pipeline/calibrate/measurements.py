"""What was measured, on disk, so that another budget for the same step measures nothing again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline.architecture.families import Point
from pipeline.architecture.spaces import Space
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.common.files import read_json, write_json
from pipeline.tensors.tensorfile import save_tensors

TENSORS, NUMBERS = "measured.safetensors", "measured.json"
Measured = dict[int, BlockStatistics]  # by original block number
Scores = dict[Space, dict[int, torch.Tensor]]  # per space, original block number to a score per unit that was left


@dataclass(frozen=True)
class Kept:
    """Tensors and JSON-compatible numbers by name; whoever measured them gives the names their meaning."""

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Same measurement, same bytes."""
        save_tensors(folder / TENSORS, self.tensors)
        write_json(folder / NUMBERS, self.numbers)

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """What ``write`` wrote."""
        return cls(load_file(folder / TENSORS), read_json(folder / NUMBERS))


def kept_scores(scores: Scores, measured: Measured) -> Kept:
    """Scores per unit, and the statistics that sizes and compensations are decided on; gradients are not among them."""
    tensors = {f"scores.{space}.{block}": score for space, by_block in scores.items() for block, score in by_block.items()}
    numbers: dict[str, Any] = {}
    for block, seen in measured.items():
        points: dict[str, Any] = {}
        for point, inputs in seen.inputs.items():
            tensors |= {f"{block}.{point}.{name}": tensor for name, tensor in _tensors(inputs).items()}
            followed = inputs.fluctuation
            points[point.value] = followed and {"sequences": followed.sequences, "tokens": followed.tokens}
        numbers[str(block)] = {
            "tokens": seen.tokens,
            "sequences": seen.sequences,
            "distance": seen.distance,
            "influence": seen.influence,
            "inputs": points,
        }
    return Kept(tensors, numbers)


def scores_of(kept: Kept) -> tuple[Scores, Measured]:
    """What ``kept_scores`` was given."""
    scores: Scores = {}
    for name in (name for name in kept.tensors if name.startswith("scores.")):
        _, space, block = name.split(".")
        scores.setdefault(Space(space), {})[int(block)] = kept.tensors[name]
    return {space: dict(sorted(by_block.items())) for space, by_block in scores.items()}, {
        int(block): _block(kept, block, numbers) for block, numbers in sorted(kept.numbers.items(), key=lambda pair: int(pair[0]))
    }


def _tensors(inputs: InputStatistics) -> dict[str, torch.Tensor]:
    found = {"squares": inputs.squares, "total": inputs.total}
    if inputs.upper is not None:
        found["upper"] = inputs.upper
    if (followed := inputs.fluctuation) is not None:
        found |= {"mean": followed.mean, "between": followed.between, "centred": followed.centred}
    return found


def _block(kept: Kept, block: str, numbers: Mapping[str, Any]) -> BlockStatistics:
    inputs = {Point(point): _inputs(kept, f"{block}.{point}.", counts) for point, counts in numbers["inputs"].items()}
    return BlockStatistics(numbers["tokens"], numbers["sequences"], numbers["distance"], numbers["influence"], inputs)


def _inputs(kept: Kept, prefix: str, counts: Mapping[str, int] | None) -> InputStatistics:
    found = {name.removeprefix(prefix): tensor for name, tensor in kept.tensors.items() if name.startswith(prefix)}
    followed = counts and Fluctuation(found["mean"], found["between"], found["centred"], counts["sequences"], counts["tokens"])
    return InputStatistics(found["squares"], found["total"], found.get("upper"), followed or None)
