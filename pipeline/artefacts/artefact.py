"""Artefact folders: named by the hash of everything they depend on, written beside their place, renamed at the end.

A killed run leaves either nothing or a whole artefact; running again goes on from what is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.artefacts.inputs import Unchanged, known_digest, unwatched
from pipeline.artefacts.sums import SUMS, file_digest, write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json

__all__ = [
    "MEASURED", "PARTIAL", "RECORD", "SUMS", "WORK", "Artefact", "digest", "exclusive", "file_digest", "folder_digest",
    "make_artefact", "whole_folder", "work_beside",
]  # fmt: skip

RECORD = "artefact.json"
MEASURED = "run.json"
PARTIAL = ".partial-"
WORK = ".work-"


@dataclass(frozen=True)
class Artefact:
    """A whole artefact.

    Attributes:
        stage: its stage's name.
        key: hash of inputs, recipe slice, code and settings.
        folder: where it lies.
        seconds: how long it took, now or when it was made.
        skipped: it was there already.
    """

    stage: str
    key: str
    folder: Path
    seconds: float
    skipped: bool = False


def make_artefact(
    store: Path,
    stage: str,
    depends: Mapping[str, Any],
    work: Callable[[Path], None],
    events: Events,
    *,
    lane: str = "",
    unchanged: Unchanged = unwatched,
) -> Artefact:
    """Runs ``work`` on an empty folder unless an artefact with the same key is there.

    Args:
        store: folder of artefacts.
        stage: name of the stage.
        depends: everything that the result depends on, JSON-compatible; hashed into the key.
        work: writes into the folder it is given.
        events: told about start, end and skipping.
        lane: which of several models this is about, for people.
        unchanged: as for ``whole_folder``.
    """
    found = expected(store, stage, depends)
    with events.of_stage(f"{stage} ({lane})" if lane else stage):
        if is_whole(found):
            events.emit("stage_skipped", f"already in {found.folder.name}")
            return replace(found, seconds=float(read_json(found.folder / MEASURED)["seconds"]), skipped=True)
        events.emit("stage_started")
        with whole_folder(found.folder, unchanged) as partial:
            started = time.monotonic()
            work(partial)
            seconds = time.monotonic() - started
            # What is measured stands apart, so that everything else is the same byte for byte when made again.
            write_json(partial / MEASURED, {"seconds": seconds, "finished": datetime.now(UTC).isoformat(timespec="seconds")})
            write_json(partial / RECORD, {"stage": stage, "key": found.key, "depends": dict(depends)})
        events.emit("stage_finished", f"{seconds:.1f} s", seconds=seconds)
    return replace(found, seconds=seconds)


def expected(store: Path, stage: str, depends: Mapping[str, Any]) -> Artefact:
    """The artefact of a stage by its key and place, whether or not it was made."""
    key = digest({"stage": stage, **depends})
    return Artefact(stage, key, store / f"{stage}-{key[:12]}", 0.0)


def is_whole(artefact: Artefact) -> bool:
    """Whether it was made."""
    return (artefact.folder / RECORD).exists()


@contextmanager
def whole_folder(folder: Path, unchanged: Unchanged = unwatched) -> Iterator[Path]:
    """Yields an empty folder beside ``folder``, sums what is in it at the end and renames it; whatever fails leaves nothing.

    Args:
        folder: new or empty.
        unchanged: raises where what the folder is made from did not stay as it was, such as ``Watched.demand_unchanged``.

    Raises:
        TrimlineError: something is at that place already, or another process is writing it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrimlineError(f"{folder} exists already.", "Name an output folder that is new or empty.")
    partial = folder.parent / f"{PARTIAL}{folder.name}"
    with _own(partial, folder):
        yield partial
        write_sums(partial)
        unchanged()
        os.replace(partial, folder)


@contextmanager
def _own(partial: Path, folder: Path) -> Iterator[None]:
    """Makes ``partial`` and locks it, so that a second process does not take it for what a killed one left.

    The lock lies on the folder itself and ends with the process, so nothing else is left beside the output.
    """
    if partial.exists():
        with _locked(partial, folder):
            shutil.rmtree(partial, ignore_errors=True)
    ours = True
    try:  # from here on: a signal may come between any two lines
        with ExitStack() as held:
            try:
                partial.mkdir(parents=True)
                held.enter_context(_locked(partial, folder))
            except (FileExistsError, TrimlineError):
                ours = False
                raise _taken(folder) from None
            yield
    finally:
        if ours:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    number = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (partial.exists() and os.path.samestat(os.fstat(number), partial.stat())):
            raise BlockingIOError
    except BlockingIOError:
        os.close(number)
        raise _taken(folder) from None
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # some network file systems have no such locks
            os.close(number)
            raise
    try:
        yield
    finally:
        os.close(number)


def _taken(folder: Path) -> TrimlineError:
    return TrimlineError(f"Another process is writing {folder}.", "Wait for it, or name another output folder.")


def work_beside(out: Path) -> Path:
    """Where a stage that takes hours keeps what a kill must not take: beside the folder that ``make_artefact`` gave it.

    Its name holds the key, so it is found again by the same work only. Whoever makes the artefact removes it afterwards.
    """
    return out.with_name(WORK + out.name.removeprefix(PARTIAL))


@contextmanager
def exclusive(store: Path, events: Events) -> Iterator[None]:
    """Holds the store; a second run into the same folder says so and waits."""
    store.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        events.note(f"another run works in {store}; waiting for it")
        lock.acquire()
    try:
        for leftover in store.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-compatible value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files directly in a folder, hidden ones and their sums left out."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".") and path.name != SUMS)
    return digest({path.name: known_digest(path) for path in files})
