"""Whether a package still is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.package import FORMAT, MANIFEST, packaged_files
from pipeline.artefact import file_digest
from pipeline.checkpoint import read_json
from pipeline.errors import TrimlineError


@dataclass(frozen=True)
class Problem:
    """One file that is not as the manifest says."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(folder: Path) -> list[Problem]:
    """Recomputes every sum; an empty list means that nothing was lost, changed or added.

    Raises:
        TrimlineError: the folder holds no manifest of this format.
    """
    folder = Path(folder)
    entries = _entries(folder)
    problems = [problem for name, entry in entries.items() if (problem := _check(folder, name, entry))]
    return problems + list(_strangers(folder, entries))


def _entries(folder: Path) -> Mapping[str, Any]:
    document = read_json(folder / MANIFEST)
    entries = document.get("files")
    if document.get("format") != FORMAT or not isinstance(entries, dict):
        raise TrimlineError(f"{folder / MANIFEST} is not a manifest of format {FORMAT}.", "Package again with this version.")
    return entries


def _check(folder: Path, name: str, entry: Any) -> Problem | None:
    place = PurePosixPath(name)
    # A manifest may come from anywhere: it must not make this read files outside the package.
    if place.is_absolute() or ".." in place.parts or "\\" in name:
        return Problem(name, "the manifest names a file outside the package")
    path = folder / place
    if not path.is_file():
        return Problem(name, "missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        return Problem(name, "leads outside the package")
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return Problem(name, "the manifest has no sum for it")
    if path.stat().st_size != entry.get("bytes"):
        return Problem(name, f"{path.stat().st_size:,} bytes instead of {entry.get('bytes')}")
    return None if file_digest(path) == entry["sha256"] else Problem(name, "its content changed")


def _strangers(folder: Path, entries: Mapping[str, Any]) -> Iterator[Problem]:
    for path in packaged_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in entries:
            yield Problem(name, "not in the manifest")
