"""Calibration as map and reduce: parts of the windows measured apart, by whatever process, and merged block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.architecture.names import KEYED_BY, gradient_name, gradient_named
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.measurements import Measurements, measurements_of, scores_of
from pipeline.calibrate.merging import demand_merged, merge_gradients, merge_statistics, why_not_merged
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockGradients, BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.steps import resolve_steps

FORWARD, BACKWARD = "forward", "backward"
Part = tuple[int, int]  # which, of how many


def why_whole(recipe: PruneSlice) -> str:
    """Why the first step's statistics cannot be measured in parts; empty where they can."""
    needs = resolve_steps(recipe)[0].statistics
    if needs is None:
        return f"{recipe.steps[0].method} measures as it goes"
    return why_not_merged(needs) if needs else f"{recipe.steps[0].method} measures nothing"


def statistics_part(recipe: PruneSlice) -> dict[str, Any]:
    """All that the parts depend on; steps that need the same statistics share them, whatever their method and budget."""
    needs = _needs(recipe)
    gradients = needs.gradients
    return {
        "calibration": recipe.calibration.model_dump(mode="json"),
        "distance": needs.distance,
        "squares": sorted(needs.squares),
        "gram": sorted(needs.gram),
        "weights": sorted(gradients.weights) if gradients else None,
        "kronecker": sorted(gradients.kronecker) if gradients else None,
        "masks": sorted(gradients.masks) if gradients else None,
        **({"routed": True} if needs.routed else {}),
        **({"experts": True} if gradients and gradients.experts else {}),
    }


def measure_part(source: Path, texts: Path, recipe: PruneSlice, part: Part, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes the statistics of one part of the calibration windows, a folder per block and direction.

    Args:
        source, texts, recipe, options, out, events: as for ``pipeline.prune.measure.measure``.
        part: which of how many; the parts are consecutive windows, as equal as can be.

    Raises:
        TrimlineError: the statistics do not merge, or there are fewer windows than parts.
    """
    needs = _needs(recipe)
    demand_merged(needs)
    model, windows = opened(source, texts, recipe.calibration, options)
    number, parts = part
    if len(windows) < parts:
        raise TrimlineError(f"The calibration has {len(windows)} windows, which do not make {parts} parts.", "Measure in fewer parts.")
    mine, family = windows.tensor_split(parts)[number], model.geometry.family
    if needs.forward:
        for block, seen in sweep(model.model, family, mine, needs, events):
            measurements_of({}, {block: seen}).write(_new(out / FORWARD / str(block)))
    if needs.gradients:
        for block, gradients in gradient_sweep(model.model, family, mine, needs.gradients, events, model.waiting_bytes):
            gradient_measurements(gradients).write(_new(out / BACKWARD / str(block)))
            del gradients  # as large as the weights or larger


@dataclass(frozen=True)
class MeasuredParts:
    """The folders that ``measure_part`` wrote, all of them, in order."""

    folders: Sequence[Path]

    def forward(self) -> Iterator[tuple[int, BlockStatistics]]:
        """As ``sweep`` yields over all windows, one block in memory at a time."""
        for block in self._blocks(FORWARD):
            parts = [scores_of(Measurements.read(folder / FORWARD / str(block)))[1][block] for folder in self.folders]
            yield block, merge_statistics(parts)

    def backward(self) -> Iterator[tuple[int, BlockGradients]]:
        """As ``gradient_sweep`` yields over all windows, the last block first."""
        for block in reversed(self._blocks(BACKWARD)):
            yield block, merge_gradients([gradients_of(Measurements.read(folder / BACKWARD / str(block))) for folder in self.folders])

    def _blocks(self, direction: str) -> list[int]:
        return sorted(int(folder.name) for folder in (self.folders[0] / direction).iterdir())


def gradient_measurements(gradients: BlockGradients) -> Measurements:
    """A block's gradients as tensors by name."""
    tensors = {gradient_name(kind, key): tensor.contiguous() for kind in KEYED_BY for key, tensor in getattr(gradients, kind).items()}
    return Measurements(tensors, {"tokens": gradients.tokens, "sequences": gradients.sequences})


def gradients_of(measurements: Measurements) -> BlockGradients:
    """What ``gradient_measurements`` was given."""
    found = BlockGradients(measurements.numbers["tokens"], measurements.numbers["sequences"])
    assert {part.name for part in fields(found)} == {*KEYED_BY, "tokens", "sequences"}
    for name, tensor in measurements.tensors.items():
        kind, key = gradient_named(name)
        getattr(found, kind)[key] = tensor
    return found


def _needs(recipe: PruneSlice) -> Needs:
    """Of the first step, of which ``why_whole`` says nothing."""
    needs = resolve_steps(recipe)[0].statistics
    assert needs is not None
    return needs


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
