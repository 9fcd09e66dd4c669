"""Rows of the equal-speed command: a system asked for a decode speed, its plan, model, perplexity and export.

A published system keeps its own rule, at the least removal that a latency table predicts to be as fast. One that removes in
several shots goes through all the speeds in a single run, slowest first, and each model on the way is a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency.cut_models import EXPORT
from benchmarks.latency.shapes import Form
from benchmarks.latency.stage import adopt, latency_table
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.studies.systems.asking import TILE
from benchmarks.studies.systems.measure import QUIET, Record, Setting, made_by, row_in_child, row_key
from benchmarks.studies.systems.row import MODEL, made
from benchmarks.studies.systems.systems import OURS, System
from exporters.onnx.stage import export
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import file_digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.prune.latency import TABLE
from pipeline.prune.recipe import PruneSlice, PruneStep, Target
from pipeline.prune.steps import resolve_step

WORKLOAD = Workload(prompt=128, output=17)  # steps after 128 tokens, as everywhere here
RUNTIME = "onnxruntime_genai"
ANY = 0.2  # a fraction that every system can be asked for; only its step's other values are used
SHOTS_AT_SPEED = 7  # of a system that goes through all speeds in one run
EXPORTED = "export"


@dataclass(frozen=True)
class SpeedRow:
    """One system at one speed.

    Attributes:
        system: which.
        speedup: over the dense model, in decoding.
        given: what its allocation is told; differs from ``speedup`` where a measurement showed the table to be wrong.
        through: all speeds that its one run goes through, ascending; only this one where every speed is a run of its own.
        shots: of that run, by speed.
        beside: the speed whose models it is timed with.
    """

    system: System
    speedup: float
    given: float
    through: tuple[float, ...]
    shots: tuple[int, ...]
    beside: float

    @property
    def name(self) -> str:
        """In file names and for the client: ``cfsp-1.4``."""
        return f"{self.system.name}-{self.speedup:g}"

    @property
    def is_alone(self) -> bool:
        """Whether another speed can be given to it without touching the others."""
        return len(self.through) == 1 and self.shots == (1,)

    @property
    def shot(self) -> int | None:
        """After which shot of the run the model is this row's; None for a run of one."""
        return None if self.is_alone else sum(self.shots[: self.through.index(self.speedup) + 1])

    def recipe(self, setting: Setting, geometry: Geometry) -> PruneSlice:
        """What the prune stage is given: a step per speed."""
        assert self.system.smaller is not None
        usual = self.system.smaller(geometry, ANY)[0]
        given = (self.given,) if self.is_alone else self.through
        steps = [_at(usual, speedup, shots) for speedup, shots in zip(given, self.shots, strict=True)]
        return PruneSlice(calibration=setting.calibration, steps=tuple(steps))


def asked_of(systems: Sequence[System], speedups: Sequence[float], ours: Sequence[float] = ()) -> list[SpeedRow]:
    """Every system at every speed, by speed; ``ours`` are further speeds of Trimline alone, each timed beside the nearest one.

    Raises:
        TrimlineError: one of them removes no units, so no model of its is faster.
    """
    if zeroing := [system.title for system in systems if system.smaller is None]:
        raise TrimlineError(f"{zeroing[0]} puts zeros where weights were, and its models are no faster.", "Name systems that remove units.")
    through = tuple(sorted(speedups))
    rows = []
    for speedup in through:
        for system in systems:
            if system.shots == 1:
                rows.append(SpeedRow(system, speedup, speedup, (speedup,), (1,), speedup))
            else:
                rows.append(SpeedRow(system, speedup, speedup, through, shots_by_speed(through, SHOTS_AT_SPEED), speedup))
    for speedup in ours:
        beside = min(through, key=lambda other: max(other / speedup, speedup / other))
        rows += [SpeedRow(system, speedup, speedup, (speedup,), (1,), beside) for system in systems if system.name == OURS]
    return rows


def shots_by_speed(through: Sequence[float], shots: int) -> tuple[int, ...]:
    """Shots from each speed to the next, in proportion to the time that goes, at least one each."""
    left = [1.0, *(1 / speedup for speedup in through)]
    parts = [before - after for before, after in zip(left, left[1:], strict=False)]
    return tuple(max(1, round(shots * part / sum(parts))) for part in parts)


def _at(usual: PruneStep, speedup: float, shots: int) -> PruneStep:
    """A system's step with a speed in place of its budget."""
    kept = usual.model_dump(mode="json", exclude={"budget", "pooled", "shots"}, exclude_defaults=True)
    target = Target(speedup=speedup, workload="decode", spaces=resolve_step(usual).spaces)
    return PruneStep.model_validate(kept | {"target": target.model_dump(mode="json", exclude_defaults=True), "shots": shots})


def form_of(setting: Setting, most_seconds: float) -> Form:
    """What the latency table is measured with: the runtime of the client."""
    timed = BenchmarkSlice(runtime=RUNTIME, workloads=(WORKLOAD,), most_seconds=most_seconds)
    return Form(EXPORT, None, timed, setting.options)


def table_of(setting: Setting, form: Form, known: Path | None) -> Path:
    """Folder of the latency table: ``known``, where it says what would be measured now, or one that is measured once.

    Raises:
        TrimlineError: ``known`` is of another model, machine or runtime; a model cannot be exported or timed.
    """
    if known is not None:
        shutil.rmtree(setting.work / "latency-given", ignore_errors=True)
        return made(setting.work / "latency-given", lambda out: adopt(known, setting.source, form, TILE, out, QUIET))
    return made(setting.work / "latency", lambda out: latency_table(setting.source, form, TILE, out, QUIET))


def dense_row(setting: Setting) -> Record:
    """The dense model's perplexity, and its export."""
    request = _common(setting) | {"recipe": None, "profile": Profile.UNIFORM.value}
    record = _made({"name": "dense", "system": "dense", "title": "dense"}, request, setting, row_key(request, setting))
    made(folder_of(setting, record) / EXPORTED, lambda out: export(setting.source, EXPORT, setting.options, out, QUIET))
    return record


def row_of(asked: SpeedRow, setting: Setting, table: Path) -> Record:
    """A row's record, made unless it is there; its model is exported into ``folder_of``.

    Raises:
        TrimlineError: the system cannot be that fast, or a stage failed.
    """
    recipe = asked.recipe(setting, Checkpoint(setting.source).geometry)
    request = _common(setting) | {"recipe": recipe.model_dump(mode="json", exclude_defaults=True), "profile": Profile.FREE.value}
    if asked.shot is not None:
        request["shot"] = asked.shot
    key = row_key(request | {"table": file_digest(table / TABLE)}, setting)
    start = {"name": asked.name, "system": asked.system.name, "title": asked.system.title, "size": f"{asked.speedup:g} ×"}
    given = {"asked": asked.speedup, "given": asked.given}
    record = _made(start | given, request | {"table": str(table.resolve())}, setting, key)
    folder = folder_of(setting, record)
    made(folder / EXPORTED, lambda out: export(folder / MODEL, EXPORT, setting.options, out, QUIET))
    shutil.rmtree(folder / MODEL, ignore_errors=True)  # of no further use
    return record


def folder_of(setting: Setting, record: Mapping[str, Any]) -> Path:
    """Where a row's plan, model and export lie."""
    return setting.work / f"{record['name']}-{record['key'][:8]}"


def _common(setting: Setting) -> dict[str, Any]:
    return {"windows": setting.evaluation.model_dump(mode="json"), "options": setting.options.as_record()}


def _made(start: Record, request: Mapping[str, Any], setting: Setting, key: str) -> Record:
    """The record of this key; measured, in a process of its own, where there is none or its files are gone."""
    place = setting.records / f"{start['name']}.json"
    kept = read_json(place) if place.exists() else {}
    if kept.get("key") == key and (folder_of(setting, kept) / EXPORTED).is_dir():
        return kept
    start |= {"key": key}
    record = start | row_in_child(start["name"], request, setting, folder_of(setting, start)) | made_by(request)
    write_json(place, record)
    return record
