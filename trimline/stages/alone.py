"""One stage of the table by itself, as the verbs of the Python API run it: folders in, a folder out, no store and no key."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artefacts.artefact import Artefact, whole_folder
from pipeline.artefacts.inputs import Watched
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.places import typed_path
from pipeline.sources.recipe import ModelSlice
from trimline.stages.names import SOURCE, Name
from trimline.stages.stage import Inputs
from trimline.stages.table import stage_of


def alone(
    name: Name,
    slice_: Any,
    folders: Mapping[Name, Path],
    out: Path,
    options: RunOptions,
    events: Events,
    *,
    timing_cache: Path | None = None,
    states: Path | None = None,
) -> None:
    """Does the work of a stage.

    Args:
        name: of what it makes; of a stage of several models, any lane.
        slice_: what its row reads of a recipe.
        folders: what it takes, by the names that its row gives them.
        out: empty folder.
        options: device, dtype, threads.
        events: progress.
        timing_cache, states: as ``Inputs`` has them.

    Raises:
        TrimlineError: the stage failed.
    """
    artefacts = {taken: Artefact(taken.stage, "", folder, 0.0) for taken, folder in folders.items()}
    stage_of(name).work(Inputs(slice_, artefacts, options, events, name, timing_cache=timing_cache, states=states), out)


def alone_into(name: Name, slice_: Any, folders: Mapping[Name, Path], output: Path | str, options: RunOptions, events: Events) -> Path:
    """The same into a new or empty folder, which is whole or is not there."""
    with whole_folder(Path(output), Watched(*folders.values()).demand_unchanged) as out:
        alone(name, slice_, folders, out, options, events)
    return Path(output)


@contextmanager
def checkpoint(named: ModelSlice, options: RunOptions, events: Events) -> Iterator[Path]:
    """The checkpoint folder of a named model; converted or downloaded ones live as long as the call."""
    path = typed_path(named.source)
    if path.is_dir():
        yield checkpoint_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="trimline-source-") as scratch:
        watched = Watched(path)
        alone(SOURCE, named, {}, Path(scratch), options, events)
        watched.demand_unchanged()
        yield checkpoint_folder(Path(scratch))
