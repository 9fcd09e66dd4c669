"""The results command's rows: one process each, kept in files, not measured again where they are there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from benchmarks.machine.environment import commit, processor_flags, processor_model
from benchmarks.studies.systems.row import MODEL, made
from benchmarks.studies.systems.systems import SystemRow
from benchmarks.studies.systems.tables import with_error
from benchmarks.timing.child import BenchmarkWorker
from pipeline.artefacts.artefact import digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.recipe import CalibrationWindows, ModelSlice, TextSlice

PATIENCE = 7 * 24 * 3600.0  # seconds for one row
NOT_YET = "not measured yet"
QUIET = Events()
Record = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common.

    Attributes:
        source: checkpoint folder of the dense model.
        texts: folder with both texts.
        identity: hashes of these two.
        calibration, evaluation: windows.
        options: threads and the dtype of the measuring passes.
        work: folder for everything that is made.
        records: folder of the rows' records, a file each, and of timings: what is there is not measured again.
    """

    source: Path
    texts: Path
    identity: dict[str, Any]
    calibration: CalibrationWindows
    evaluation: EvaluateSlice
    options: RunOptions
    work: Path
    records: Path


def prepare(
    model: str,
    text: TextSlice,
    calibration: CalibrationWindows,
    evaluation: EvaluateSlice,
    options: RunOptions,
    work: Path,
    records: Path,
) -> Setting:
    """Fetches the model and reads the texts, once.

    Raises:
        TrimlineError: no such model or text, or both texts are one.
    """
    for folder in (work, records):
        folder.mkdir(parents=True, exist_ok=True)
    named = ModelSlice(source=model)
    one_each = {role: texts[0] for role, texts in text_source.identify(text).items() if role in ("calibration", "evaluation")}
    identity = {"model": model_source.identify(named), "texts": one_each}
    source = made(work / f"source-{digest(identity['model'])[:8]}", lambda out: model_source.source(named, options, out, QUIET))
    texts = made(work / f"text-{digest(identity['texts'])[:8]}", lambda out: text_source.texts(text, options, out, QUIET))
    return Setting(model_source.checkpoint_folder(source), texts, identity, calibration, evaluation, options, work, records)


def measured_row(row: SystemRow, setting: Setting, anew: bool = False, measure: bool = True) -> Record:
    """A row's record, measured unless one with the same recipe, texts, model and options is there.

    A failure is in the record that is returned, and in no file: it is tried again the next time. So is ``NOT_YET``, where
    nothing is to be measured.
    """
    record: Record = {"name": row.name, "system": row.system.name, "title": row.system.title, "size": row.size}
    try:
        request = _request(row, setting)
        key = row_key(request, setting)
        out, place = setting.work / f"{row.name}-{key[:8]}", setting.records / f"{row.name}.json"
        _clear(out, place, anew)
        if _is_done(place, key):
            kept = read_json(place)
            return kept | {"own": _own(row, kept)}
        if not measure:
            return record | {"failure": NOT_YET}
        typer.echo(f"{row.system.title}, {row.size} …", err=True)
        record |= row_in_child(row.name, request, setting, out)
    except TrimlineError as error:
        failure = without_paths(error.problem, setting)
        typer.echo(f"    {failure}", err=True)
        return record | {"failure": f"failed: {failure}"}
    shutil.rmtree(out / MODEL, ignore_errors=True)  # of no further use
    planned = record["cost"]["code"] if record["cost"] else None  # a plan that was there already may be older than this code
    record |= {"own": _own(row, record), "key": key, "code": planned} | made_by(request)
    write_json(place, record)
    typer.echo(f"    perplexity {with_error(record['perplexity'])}", err=True)
    return record


def row_in_child(name: str, request: Mapping[str, Any], setting: Setting, out: Path) -> Record:
    """What ``benchmarks.studies.systems.row`` finds of a row, in a process of its own; its files are in ``out``.

    Raises:
        TrimlineError: a stage failed, or the process did.
    """
    with BenchmarkWorker(name, patience=PATIENCE, module="benchmarks.studies.systems.row") as child:
        where = {"source": str(setting.source.resolve()), "texts": str(setting.texts.resolve()), "out": str(out.resolve())}
        found: Record = child.ask("row", **request, **where)["row"]
    return found


def made_by(request: Mapping[str, Any]) -> Record:
    """Which code made a row here, and how it computed."""
    how = {name: request["options"][name] for name in ("dtype", "threads")}
    return {"commit": commit()} | how | {"processor": processor_model(), "flags": processor_flags()}


def _own(row: SystemRow, record: Mapping[str, Any]) -> str:
    """What the system itself calls the result."""
    zeros = "2 zeros in every 4 weights" if row.remove is None else "zeros among the linears' weights, wherever they lie"
    return "" if row.is_dense else zeros if row.is_sparse else row.system.own(record["removed"])


def row_key(request: Mapping[str, Any], setting: Setting) -> str:
    """All that a row depends on. How many threads computed it changes no more than the order of some sums."""
    options = {name: value for name, value in request["options"].items() if name != "threads"}
    return digest({**request, "options": options} | setting.identity)


def without_paths(text: str, setting: Setting) -> str:
    """A sentence for a page: no place on this machine."""
    for place in (setting.source, setting.texts, setting.work):
        text = re.sub(re.escape(str(place.resolve())) + r"[^\s,:;)]*", place.name, text)
    return text


def _request(row: SystemRow, setting: Setting) -> dict[str, Any]:
    recipe = row.recipe(Checkpoint(setting.source).geometry, setting.calibration)
    request = {
        "recipe": recipe and recipe.model_dump(mode="json", exclude_defaults=True),
        "profile": row.profile.value,
        "windows": setting.evaluation.model_dump(mode="json", include={"windows", "window"}),  # all that rows differ in
        "options": setting.options.as_record(),
    }
    return request if row.shot is None else request | {"shot": row.shot}


def _clear(out: Path, place: Path, anew: bool) -> None:
    """Removes what an older recipe of this row left, and, for ``anew``, this one's too."""
    for folder in out.parent.glob(f"{out.name[:-8]}????????"):
        if anew or folder != out:
            shutil.rmtree(folder)
    if anew:
        place.unlink(missing_ok=True)


def _is_done(place: Path, key: str) -> bool:
    return place.exists() and read_json(place).get("key") == key
