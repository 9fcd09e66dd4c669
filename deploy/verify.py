"""Whether a package still is what its manifest and its SHA256SUMS say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.folder import MANIFEST
from deploy.package import FORMAT, packaged_files
from pipeline.artefacts.sums import SUMS, Problem, bad_place, check_sums, file_digest, read_sums
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.files import read_json


def verify(folder: Path) -> list[Problem]:
    """Recomputes every sum; an empty list means that nothing was lost, changed or added.

    Raises:
        TrimlineError: the folder holds no manifest of this format.
    """
    folder = Path(folder)
    if _manifest_changed(folder):  # it says nothing then
        return check_sums(folder)
    entries = _entries(folder)
    seen: dict[str, str] = {}  # sums, so that no file is read twice
    problems = [problem for name, entry in entries.items() if (problem := _check(folder, name, entry, seen))]
    problems += _strangers(folder, entries)
    named = {problem.path for problem in problems}
    return problems + [problem for problem in check_sums(folder, seen) if problem.path not in named]


def _manifest_changed(folder: Path) -> bool:
    """Whether the manifest, which cannot sum itself, is not what the list beside it says."""
    path = folder / MANIFEST
    if not (path.is_file() and (folder / SUMS).is_file()):
        return False
    try:
        return file_digest(path) != read_sums(folder).get(MANIFEST, file_digest(path))
    except TrimlineError:  # the list is what was changed; it is named by whoever reads it next
        return False


def _entries(folder: Path) -> Mapping[str, Any]:
    document = read_json(folder / MANIFEST)
    entries = document.get("files")
    if document.get("format") != FORMAT or not isinstance(entries, dict):
        raise TrimlineError(f"{folder / MANIFEST} is not a manifest of format {FORMAT}.", "Package again with this version.")
    return entries


def _check(folder: Path, name: str, entry: Any, seen: dict[str, str]) -> Problem | None:
    if place := bad_place(folder, name):
        return Problem(name, place)
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return Problem(name, "the manifest has no sum for it")
    path = folder / name
    if path.stat().st_size != entry.get("bytes"):
        return Problem(name, f"{path.stat().st_size:,} bytes instead of {shown(entry.get('bytes'))}")
    seen[name] = file_digest(path)
    return None if seen[name] == entry["sha256"] else Problem(name, "its content changed")


def _strangers(folder: Path, entries: Mapping[str, Any]) -> Iterator[Problem]:
    for path in packaged_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in entries:
            yield Problem(name, "not in the manifest")
