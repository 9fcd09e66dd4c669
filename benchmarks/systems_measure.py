"""The results command's rows: one process each, kept in files, not measured again where they are there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from benchmarks.child import Child
from benchmarks.environment import commit
from benchmarks.recipe import BenchmarkSlice
from benchmarks.systems_list import Row
from benchmarks.systems_row import MODEL, ONNX, made
from benchmarks.systems_speed import Speeds, time_rows
from benchmarks.systems_tables import with_error
from pipeline.artefact import digest
from pipeline.checkpoint import Checkpoint, read_json, write_json
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions
from pipeline.recipe import CalibrationWindows, EvaluateSlice, ModelSlice, TextSlice
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source

PATIENCE = 7 * 24 * 3600.0  # seconds for one row
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
        timed: whether rows are exported, to be timed.
        work: folder for everything that is made.
    """

    source: Path
    texts: Path
    identity: dict[str, Any]
    calibration: CalibrationWindows
    evaluation: EvaluateSlice
    options: RunOptions
    timed: bool
    work: Path


def prepare(
    model: str, text: TextSlice, calibration: CalibrationWindows, evaluation: EvaluateSlice, options: RunOptions, timed: bool, work: Path
) -> Setting:
    """Fetches the model and reads the texts, once.

    Raises:
        TrimlineError: no such model or text, or both texts are one.
    """
    (work / "rows").mkdir(parents=True, exist_ok=True)
    named = ModelSlice(source=model)
    identity = {"model": model_source.identify(named), "texts": text_source.identify(text)}
    source = made(work / f"source-{digest(identity['model'])[:8]}", lambda out: model_source.source(named, options, out, QUIET))
    texts = made(work / f"text-{digest(identity['texts'])[:8]}", lambda out: text_source.texts(text, options, out, QUIET))
    return Setting(model_source.checkpoint_folder(source), texts, identity, calibration, evaluation, options, timed, work)


def measured_row(row: Row, setting: Setting, anew: bool = False) -> Record:
    """A row's record, measured unless one with the same recipe, texts, model and options is there.

    A failure is in the record that is returned, and in no file: it is tried again the next time.
    """
    record: Record = {"name": row.name, "system": row.system.name, "title": row.system.title, "size": row.size}
    try:
        request = _request(row, setting)
        key = digest(request | setting.identity)
        out, place = setting.work / "rows" / f"{row.name}-{key[:8]}", setting.work / "rows" / f"{row.name}.json"
        _clear(out, anew)
        timed = setting.timed and not row.is_sparse
        if _is_done(place, key) and (not timed or (out / ONNX).exists()):
            return read_json(place)
        typer.echo(f"{row.system.title}, {row.size} …", err=True)
        with Child(row.name, patience=PATIENCE, module="benchmarks.systems_row") as child:
            where = {"source": str(setting.source.resolve()), "texts": str(setting.texts.resolve()), "out": str(out.resolve())}
            record |= child.ask("row", **request, **where, timed=timed)["row"]
    except TrimlineError as error:
        failure = without_paths(error.problem, setting)
        typer.echo(f"    {failure}", err=True)
        return record | {"failure": failure}
    shutil.rmtree(out / MODEL, ignore_errors=True)  # exported, or of no further use
    own = "2 zeros in every 4 weights" if row.is_sparse else row.system.own(record["removed"])
    planned = record["cost"]["code"] if record["cost"] else None  # a plan that was there already may be older than this code
    record |= {"own": own, "key": key, "out": out.name, "code": planned, "commit": commit()}
    if "untimed" in record:
        record["untimed"] = without_paths(record["untimed"], setting)
    write_json(place, record)
    typer.echo(f"    perplexity {with_error(record['perplexity'])}", err=True)
    return record


def without_paths(text: str, setting: Setting) -> str:
    """A sentence for a page: no place on this machine."""
    for place in (setting.source, setting.texts, setting.work):
        text = re.sub(re.escape(str(place.resolve())) + r"[^\s,:;)]*", place.name, text)
    return text


def _request(row: Row, setting: Setting) -> dict[str, Any]:
    recipe = row.recipe(Checkpoint(setting.source).geometry, setting.calibration)
    return {
        "recipe": recipe and recipe.model_dump(mode="json", exclude_defaults=True),
        "profile": row.profile.value,
        "windows": setting.evaluation.model_dump(mode="json"),
        "options": setting.options.as_record(),
    }


def _clear(out: Path, anew: bool) -> None:
    """Removes what an older recipe of this row left, and, for ``anew``, this one's too."""
    for folder in out.parent.glob(f"{out.name[:-8]}????????"):
        if anew or folder != out:
            shutil.rmtree(folder)
    if anew:
        (out.parent / f"{out.name[:-9]}.json").unlink(missing_ok=True)


def _is_done(place: Path, key: str) -> bool:
    return place.exists() and read_json(place).get("key") == key


def timings(records: Sequence[Record], setting: Setting, recipe: BenchmarkSlice, together: int) -> Speeds:
    """Speeds of every row that was exported; nothing without the dense model's."""
    folders = {r["name"]: setting.work / "rows" / r["out"] / ONNX for r in records if "out" in r}
    folders = {name: folder for name, folder in folders.items() if folder.exists()}
    dense = folders.pop("dense", None)
    if dense is None or not folders:
        return Speeds()
    keys = {record["name"]: record["key"] for record in records if "key" in record}
    speed = setting.work / "speed"
    speed.mkdir(exist_ok=True)
    return time_rows(dense, folders, keys, recipe, setting.options, speed, together)
