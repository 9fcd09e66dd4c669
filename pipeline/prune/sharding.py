"""Calibration as map and reduce: parts of the windows measured apart, by whatever process, and merged block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.architecture.families import Point, Sublayer
from pipeline.architecture.spaces import Space
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.measurements import Kept, kept_scores, scores_of
from pipeline.calibrate.merging import demand_merged, merge_gradients, merge_statistics, why_not_merged
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockGradients, BlockStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.methods import ScoringMethod, method_named
from pipeline.prune.methods.method import MeasuringMethod
from pipeline.prune.opening import opened
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.scoring import needs_of
from pipeline.prune.steps import is_sequential

FORWARD, BACKWARD = "forward", "backward"
KEYS = {"absolute": str, "squares": str, "outputs": str, "inputs": Point, "totals": Point, "masks": Sublayer}
Part = tuple[int, int]  # which, of how many


def why_whole(recipe: PruneSlice) -> str:
    """Why the first step's statistics cannot be measured in parts; empty where they can."""
    step = recipe.steps[0]
    method = method_named(step.method)
    if Space.WEIGHT in step.spaces or not isinstance(method, ScoringMethod) or isinstance(method, MeasuringMethod):
        return f"{step.method} measures as it goes"
    return why_not_merged(_needs(step))


def statistics_part(recipe: PruneSlice) -> dict[str, Any]:
    """All that the parts depend on; steps that need the same statistics share them, whatever their method and budget."""
    needs = _needs(recipe.steps[0])
    gradients = needs.gradients
    return {
        "calibration": recipe.calibration.model_dump(mode="json"),
        "distance": needs.distance,
        "squares": sorted(needs.squares),
        "gram": sorted(needs.gram),
        "weights": sorted(gradients.weights) if gradients else None,
        "kronecker": sorted(gradients.kronecker) if gradients else None,
        "masks": sorted(gradients.masks) if gradients else None,
    }


def measure_part(source: Path, texts: Path, recipe: PruneSlice, part: Part, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes the statistics of one part of the calibration windows, a folder per block and direction.

    Args:
        source, texts, recipe, options, out, events: as for ``pipeline.prune.measure.measure``.
        part: which of how many; the parts are consecutive windows, as equal as can be.

    Raises:
        TrimlineError: the statistics do not merge, or there are fewer windows than parts.
    """
    needs = _needs(recipe.steps[0])
    demand_merged(needs)
    model, windows = opened(source, texts, recipe, options)
    number, parts = part
    if len(windows) < parts:
        raise TrimlineError(f"The calibration has {len(windows)} windows, which do not make {parts} parts.", "Measure in fewer parts.")
    mine, family = windows.tensor_split(parts)[number], model.geometry.family
    if needs.forward or not needs.gradients:
        for block, seen in sweep(model.model, family, mine, needs, events):
            kept_scores({}, {block: seen}).write(_new(out / FORWARD / str(block)))
    if needs.gradients:
        for block, gradients in gradient_sweep(model.model, family, mine, needs.gradients, events, model.waiting_bytes):
            kept_gradients(gradients).write(_new(out / BACKWARD / str(block)))
            del gradients  # as large as the weights or larger


@dataclass(frozen=True)
class Parts:
    """The folders that ``measure_part`` wrote, all of them, in order."""

    folders: Sequence[Path]

    def forward(self) -> Iterator[tuple[int, BlockStatistics]]:
        """As ``sweep`` yields over all windows, one block in memory at a time."""
        for block in self._blocks(FORWARD):
            parts = [scores_of(Kept.read(folder / FORWARD / str(block)))[1][block] for folder in self.folders]
            yield block, merge_statistics(parts)

    def backward(self) -> Iterator[tuple[int, BlockGradients]]:
        """As ``gradient_sweep`` yields over all windows, the last block first."""
        for block in reversed(self._blocks(BACKWARD)):
            yield block, merge_gradients([gradients_of(Kept.read(folder / BACKWARD / str(block))) for folder in self.folders])

    def _blocks(self, direction: str) -> list[int]:
        return sorted(int(folder.name) for folder in (self.folders[0] / direction).iterdir())


def kept_gradients(gradients: BlockGradients) -> Kept:
    """A block's gradients as tensors by name."""
    tensors = {f"{kind}/{key}": tensor.contiguous() for kind in KEYS for key, tensor in getattr(gradients, kind).items()}
    return Kept(tensors, {"tokens": gradients.tokens, "sequences": gradients.sequences})


def gradients_of(kept: Kept) -> BlockGradients:
    """What ``kept_gradients`` was given."""
    found = BlockGradients(kept.numbers["tokens"], kept.numbers["sequences"])
    assert {part.name for part in fields(found)} == {*KEYS, "tokens", "sequences"}
    for name, tensor in kept.tensors.items():
        kind, _, key = name.partition("/")
        getattr(found, kind)[KEYS[kind](key)] = tensor
    return found


def _needs(step: PruneStep) -> Needs:
    return needs_of(step, compensated=not is_sequential(step))


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
