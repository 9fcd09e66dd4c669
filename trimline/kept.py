"""What a verb that is one stage keeps beside its output when it is stopped, so that the same call goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine.environment import versions
from pipeline.artefacts.artefact import RECORD, WORK, digest, file_digest, folder_digest, make_artefact
from pipeline.artefacts.inputs import Watched
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import result_key
from pipeline.sources.places import typed_path
from pipeline.sources.recipe import TextSlice
from pipeline.sources.roles import role_files
from trimline.recipe import Recipe
from trimline.stages.alone import alone
from trimline.stages.names import MEASURED, RECOVERED, SOURCE, TEXT, Name
from trimline.stages.table import stage_of


@contextmanager
def work_of(output: Path) -> Iterator[Path]:
    """Where what a stopped call leaves to go on from lies: beside the output; gone where that is nothing whole."""
    work = output.with_name(f"{WORK}{output.name}")
    try:
        yield work
    finally:
        if not any([*work.glob(f"*/{RECORD}"), *work.glob("*/*.jsonl")]):
            shutil.rmtree(work, ignore_errors=True)


def first_shot_of(
    wanted: Recipe, part: dict[str, Any], taken: Mapping[Name, Path], work: Path, options: RunOptions, events: Events, watched: Watched
) -> Path:
    """What the first shot measures, which an earlier call with exactly these inputs may have left."""
    depends = {
        "recipe": part,
        "inputs": [folder_digest(taken[name]) for name in (SOURCE, TEXT)],
        "options": options.as_record(),
        "code": stage_of(MEASURED).code(wanted, None),
        "libraries": versions(),
    }
    return make_artefact(
        work,
        MEASURED.stage,
        depends,
        lambda out: alone(MEASURED, wanted.prune, taken, out, options, events),
        events,
        unchanged=watched.demand_unchanged,
    ).folder


def text_files(texts: TextSlice) -> list[Path]:
    """What of the texts may be a file."""
    return [typed_path(text.source) for text in texts.every]


def states_of(output: Path, recipe: RecoverSlice, pruned: Path, dense: Path | None, texts: Path, options: RunOptions) -> Path:
    """Where a recovery of exactly these inputs keeps its states: beside the output, under a name that no other one has."""
    inputs = {
        "pruned": folder_digest(pruned),
        "dense": folder_digest(dense) if dense else "",
        "text": [file_digest(path) for role in ("calibration", "recovery") for path in role_files(texts, role)],
        "code": stage_of(RECOVERED).code(None, None),
    }
    return output.parent / f"{WORK}{output.name}-{digest(inputs | result_key(recipe, options))[:12]}"
