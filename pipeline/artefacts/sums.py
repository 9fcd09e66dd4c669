"""SHA-256 of every file of an artefact, in the form that ``sha256sum --check`` reads; nothing in that file is without meaning."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.common.errors import TrimlineError, shown

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^\n\r\\]+)\n")
LARGEST = 32 * 2**20


@dataclass(frozen=True)
class Problem:
    """One file that is not as it was written, or one check that failed."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Writes ``SHA256SUMS`` over every file below ``folder`` but itself, in path order.

    Raises:
        TrimlineError: the name of a file cannot stand in a line.
    """
    lines = [f"{file_digest(folder / name)}  {name}\n" for name in names_below(folder) if name != SUMS]
    wrong = next((line for line in lines if not LINE.fullmatch(line)), None)
    if wrong is not None:
        raise TrimlineError(f"The file name {shown(wrong[66:-1])} cannot be listed.", "Rename it.")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="")


def read_sums(folder: Path) -> dict[str, str]:
    """Name to SHA-256, as ``write_sums`` wrote them.

    Raises:
        TrimlineError: there is no such file, or it is not exactly of that form.
    """
    path = folder / SUMS
    if not path.is_file():
        raise TrimlineError(f"{folder} carries no {SUMS}, so there is nothing to check it against.", "Make it again with this version.")
    try:
        text = path.read_bytes()[: LARGEST + 1].decode("utf-8")
    except UnicodeDecodeError:
        text = "\n"
    found = {name: digest for digest, name in LINE.findall(text)}
    if len(text) > LARGEST or "".join(f"{digest}  {name}\n" for name, digest in found.items()) != text:
        raise TrimlineError(f"{path} is not a list of sums: it was changed.", "Make the folder again.")
    return found


def check_sums(folder: Path, known: Mapping[str, str] | None = None) -> list[Problem]:
    """Every file that is missing, changed or new.

    Args:
        folder: with ``SHA256SUMS``.
        known: sums that somebody has computed a moment ago, by name; not computed again.
    """
    try:
        sums = read_sums(folder)
    except TrimlineError as error:
        return [Problem(SUMS, error.problem.removesuffix("."))]
    problems = [problem for name, digest in sums.items() if (problem := check_file(folder, name, digest, known or {}))]
    strangers = [Problem(name, f"not in {SUMS}") for name in names_below(folder) if name not in sums and name != SUMS]
    return problems + strangers


def check_file(folder: Path, name: str, digest: str, known: Mapping[str, str]) -> Problem | None:
    """One file against its sum; a list may come from anywhere, and must not make this read outside the folder."""
    if place := bad_place(folder, name):
        return Problem(name, place)
    return None if (known.get(name) or file_digest(folder / name)) == digest else Problem(name, "its content changed")


def bad_place(folder: Path, name: str) -> str | None:
    """Why a listed file cannot be read; None where it can."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\\" in name or "\0" in name:
        return "the list names a file outside the folder"
    if not (folder / place).is_file():
        return "missing"
    return None if (folder / place).resolve().is_relative_to(folder.resolve()) else "leads outside the folder"


def names_below(folder: Path) -> Iterator[str]:
    """Every file and link below, in path order, relative, with slashes."""
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    yield from sorted(path.relative_to(folder).as_posix() for path in found)
